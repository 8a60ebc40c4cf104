"""`aibrix-batch serve`: flags over the environment."""

from __future__ import annotations

from pathlib import Path

from services.kit.settings import Settings


def overridden(settings: Settings, *, data_dir: Path | None, host: str | None, port: int | None) -> Settings:
    """`settings` with what the flags say."""
    update: dict[str, object] = {}
    if data_dir is not None:
        update["data_dir"] = data_dir
    if host is not None or port is not None:
        old_host, _, old_port = settings.gateway.listen.rpartition(":")
        host = old_host if host is None else f"[{host}]" if ":" in host else host
        listen = f"{host}:{old_port if port is None else port}"
        update["gateway"] = settings.gateway.model_copy(update={"listen": listen})
    return settings.model_copy(update=update)
