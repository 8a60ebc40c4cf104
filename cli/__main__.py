"""`python -m cli` is `aibrix-batch`."""

from __future__ import annotations

from cli.main import main

main()
