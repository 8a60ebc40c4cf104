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
    "Kubernetes": "services.runner.runtimes.kubernetes.workloads:Kubernetes",
    "KubernetesJob": "services.runner.runtimes.kubernetes.workloads:KubernetesJob",
    "LambdaCloud": "services.runner.runtimes.lambda_cloud:LambdaCloud",
    "Local": "services.runner.runtimes.local:Local",
    "RunPod": "services.runner.runtimes.runpod:RunPod",
}
CALLS = ("launch", "probe", "release", "list", "close")
# As long as `aibrix.runtime.target` may be: a longer one could never be asked for.
LONGEST_TARGET = 128


def load_runtimes(settings: Settings) -> dict[str, Runtime]:
    """Every runtime by its target. A package's runtime that cannot be used is left out, and the log says why.

    Error: ValueError if two have the same target, since nobody could say which of them a batch gets.
    """
    runtimes = {target: _build(resolve_name(path), settings) for target, path in RUNTIMES.items()}
    origins = dict(RUNTIMES)
    for entry, runtime in _from_packages(settings):
        target, origin = runtime.target, _origin(entry)
        if target in origins:
            raise ValueError(f"two runtimes are called {target}: {origins[target]} and {origin}; uninstall one of them")
        runtimes[target] = runtime
        origins[target] = origin
    return runtimes


def _from_packages(settings: Settings) -> Iterator[tuple[EntryPoint, Runtime]]:
    for entry in entry_points(group=GROUP):
        try:
            runtime = _build(entry.load(), settings)
            _check(runtime)
        except (Exception, SystemExit):  # the code of others may fail in any way, and must not stop ours
            log.exception("runtime not loaded", entry_point=entry.name, value=_origin(entry))
            continue
        yield entry, runtime


def _build(runtime_class: RuntimeClass, settings: Settings) -> Runtime:
    return runtime_class(settings)


def _check(runtime: Runtime) -> None:
    """Whether it is one, by its looks; what it does, its own tests say. Error: TypeError."""
    target = runtime.target
    named = isinstance(target, str) and target and len(target) <= LONGEST_TARGET
    if not named or not target.isprintable() or target != target.strip():
        raise TypeError(
            f"its class attribute `target` must be a name of 1 to {LONGEST_TARGET} printable characters without spaces around"
        )
    missing = [name for name in CALLS if not callable(getattr(runtime, name, None))]
    if missing:
        raise TypeError(f"it lacks {', '.join(missing)}: see services/runner/runtimes/base.py")


def _origin(entry: EntryPoint) -> str:
    """Where its code is, and which package brought it."""
    return f"{entry.value} of the package {entry.dist.name}" if entry.dist else entry.value
