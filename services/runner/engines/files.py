"""Which files of this machine a template may name, and where they are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.engines.flags import SPEC, invalid
from services.kit.engines.table import adapter_of
from services.kit.spec.template import TemplateSpec

ANYWHERE = "*"
SETTING = "AIBRIX_LOCAL__MODELS_DIR"
FIELDS = (
    ("model_source", "uri"),
    ("model_source", "tokenizer_path"),
    ("model_source", "chat_template_path"),
    ("engine_args", "speculative_model"),
)
# As hubs name models: neither a path nor an address, though a folder may have the same name.
NAME = r"[A-Za-z0-9][\w.-]*"
HUB = re.compile(rf"(?:{NAME}/)?{NAME}(?::{NAME})?", re.ASCII)
REPOSITORY = re.compile(rf"{NAME}/{NAME}(?::{NAME})?", re.ASCII)
# Object stores that the engine itself reads models from: with vllm[runai], and likewise in SGLang.
STREAMS = {"vllm": ("s3",), "sglang": ("s3",)}


@dataclass(frozen=True, kw_only=True)
class Files:
    models_dir: str
    """The setting: a folder, `*`, or empty."""
    folder: Path
    """The engine's working directory, where it would look for a name that is also a path."""
    bound: bool
    """A user wrote the template, so that it may name files of `models_dir` only. Not so an operator."""
    overridden: frozenset[str] = frozenset()
    """Fields of engine_args that the batch wrote over an operator's: bound as well."""

    def located(self, spec: TemplateSpec) -> TemplateSpec:
        """The template with the whole path wherever it names a file. Error: InvalidArgument with the field's path.

        Whether a file exists that may not be named is not said.
        """
        if adapter_of(spec).engine == "mock":
            return spec
        self._check_source(spec)
        for section, name in FIELDS:
            value = getattr(getattr(spec, section), name)
            if value is not None and self._is_path(spec, name, value):
                spec = _with(spec, section, name, str(self._path(value, (*SPEC, section, name))))
        return spec

    def _check_source(self, spec: TemplateSpec) -> None:
        source, engine = spec.model_source, spec.engine.type
        path = (*SPEC, "model_source")
        if source.type in ("huggingface", "local"):
            return
        if source.type not in STREAMS.get(engine, ()):
            raise invalid(
                (*path, "type"),
                f"on this machine {engine} cannot load from {source.type}; download the model, type local",
            )
        if not source.uri.startswith(source.type + "://"):
            raise invalid((*path, "uri"), f"it must begin with {source.type}://")
        if self._is_bound("uri"):
            raise invalid(
                (*path, "type"),
                "the engine would read it with the runner's own credentials, so only a template of the operator's "
                "registry may name an object store",
            )

    def _is_bound(self, name: str) -> bool:
        return (self.bound or name in self.overridden) and self.models_dir != ANYWHERE

    def _is_path(self, spec: TemplateSpec, name: str, value: str) -> bool:
        if name == "uri" and spec.model_source.type == "local":
            return True
        if name == "uri" and spec.model_source.type != "huggingface":
            return False
        if spec.engine.type == "llamacpp":
            return name != "uri" or not REPOSITORY.fullmatch(value)
        if not HUB.fullmatch(value):
            return self._is_bound(name) or "://" not in value
        return os.path.exists(self.folder / value) or (name != "uri" and os.path.exists(self._base() / value))

    def _base(self) -> Path:
        """What relative paths are relative to."""
        return Path.cwd() if self.models_dir in ("", ANYWHERE) else Path(self.models_dir).absolute()

    def _path(self, value: str, path: tuple[str, ...]) -> Path:
        found = self._base() / value
        if not self._is_bound(path[-1]):
            return found
        if not self.models_dir:
            raise invalid(path, f"a batch's own template may not name a file: the operator has not set {SETTING}")
        try:
            inside = found.resolve().is_relative_to(self._base().resolve())
        except (OSError, RuntimeError):
            inside = False  # links that lead in a circle, or a name that is too long
        if not inside:
            raise invalid(path, f"it is not in the folder of models that the operator has set ({SETTING})")
        return found


def _with(spec: TemplateSpec, section: str, name: str, value: Any) -> TemplateSpec:
    changed: dict[str, Any] = {name: value}
    if name == "uri":
        changed["type"] = "local"
    part = getattr(spec, section).model_copy(update=changed)
    return spec.model_copy(update={section: part})
