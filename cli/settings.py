"""The table of settings, for `aibrix-batch settings` and docs/settings.md."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, SecretStr

from services.kit.settings import Settings, environment_names

HEAD = """# Settings

Made by `make docs` from services/kit/settings.py. All settings are environment variables; flags of `aibrix-batch`
override them. A name that begins with `AIBRIX_` and is not in this table stops the start, so that a typing error does not
pass for a default. The one exception is `AIBRIX_ENDPOINT_KEY_...`: see [operations](operations.md#keys-of-endpoints).

| variable | default | meaning |
|---|---|---|
"""


def table() -> str:
    """Markdown, a row per variable."""
    rows = []
    for name, meaning in environment_names().items():
        text = " ".join(meaning.split()).replace("|", r"\|")
        rows.append(f"| `{name}` | {_default(name)} | {text} |\n")
    return HEAD + "".join(rows)


def _default(name: str) -> str:
    value: object = Settings.model_construct()  # the defaults alone: the environment is not read
    plain = {field.validation_alias: key for key, field in Settings.model_fields.items() if field.validation_alias}
    for part in [plain[name]] if name in plain else name.removeprefix("AIBRIX_").lower().split("__"):
        assert isinstance(value, BaseModel)
        value = getattr(value, part)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    text = str(value) if isinstance(value, (str, Path)) else json.dumps(value)
    return f"`{text}`" if text else ""
