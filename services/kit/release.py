"""Which release this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The installed version; `source` for a tree that is run without being installed."""
    try:
        return version("aibrix-batch")
    except PackageNotFoundError:
        return "source"
