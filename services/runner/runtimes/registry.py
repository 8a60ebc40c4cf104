"""Which runtimes there are: ours in one table, those of other packages by entry point."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name

import structlog

from services.kit.settings import Settings
from services.runner.runtimes.base import Runtime, RuntimeClass

log = structlog.get_logger(__name__)

GROUP = "aibrix_batch.runtimes"
# Value of `aibrix.runtime.target` to class. To add one: a file beside this one, a row here, and its own tests besides
# tests/contracts/test_runtime.py, which every runtime passes.
RUNTIMES = {
    "External": "services.runner.runtimes.external:External",
    "Local": "services.runner.runtimes.local:Local",
}


def load_runtimes(settings: Settings) -> dict[str, Runtime]:
    """Every runtime by its target. A package's runtime that cannot be built is left out, and the log says why.

    Error: ValueError if two have the same target, since nobody could say which of them a batch gets.
    """
    runtimes = {target: _build(resolve_name(path), settings) for target, path in RUNTIMES.items()}
    origins = dict(RUNTIMES)
    for entry, runtime in _from_packages(settings):
        if runtime.target in origins:
            raise ValueError(f"two runtimes are called {runtime.target}: {origins[runtime.target]} and {entry.value}")
        runtimes[runtime.target] = runtime
        origins[runtime.target] = entry.value
    return runtimes


def _from_packages(settings: Settings) -> Iterator[tuple[EntryPoint, Runtime]]:
    for entry in entry_points(group=GROUP):
        try:
            runtime = _build(entry.load(), settings)
            if not isinstance(runtime.target, str) or not runtime.target:
                raise TypeError("its class attribute `target` is not a name")
        except Exception:  # the code of others may fail in any way, and must not stop ours
            log.exception("runtime not loaded", entry_point=entry.name, value=entry.value)
            continue
        yield entry, runtime


def _build(runtime_class: RuntimeClass, settings: Settings) -> Runtime:
    return runtime_class(settings)
