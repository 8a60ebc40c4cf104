"""How the mock engine behaves. The fields of `Behaviour` are also its flags, for templates and for the command line."""

from __future__ import annotations

from pydantic import Field

from services.kit.engines.mock import Behaviour


class MockOptions(Behaviour):
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535)
    """0: a free one."""
    port_file: str = ""
    """Written, with the port, when the engine answers."""
    models: tuple[str, ...] = ()
    """Models that there are; others get a 404. Empty: any."""
    record: bool = False
    """Keep every request, for tests."""
