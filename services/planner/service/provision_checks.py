"""What a request for compute must be like. Errors name the field as users write it: under `resource_request`, or, of a job,
in its template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from services.kit.errors import InvalidArgument
from services.kit.spec.block import dotted
from services.planner.domain import Group, ProvisionSpec
from services.planner.resource_manager import gpus
from services.planner.service import documents

ROOT = "resource_request"
# What a job's template says of its compute.
OF_A_TEMPLATE = {
    "resource_request.groups.0.gpus_per_replica": f"{documents.SPEC}.accelerator.count",
    "resource_request.groups.0.accelerator_preference.preferred_types.0": f"{documents.SPEC}.accelerator.type",
    "resource_request.groups.0.accelerator_preference.min_memory_gb": f"{documents.SPEC}.accelerator.vram_gb",
    "resource_request.image": f"{documents.SPEC}.engine.image",
}
MOST_GPUS = 64
MOST_MEMORY_GB = 10_000
MOST_ENTRIES = 32
LONGEST_NAME = 128
LONGEST_IMAGE = 512
LONGEST_KEY = 255


def check_request(key: str, project_id: str) -> None:
    for param, text in (("idempotency_key", key), ("project_id", project_id)):
        if not text:
            message = f"Missing required parameter: '{param}'."
            raise InvalidArgument(message, param=param, code="missing_required_parameter")
        _check_text(text, LONGEST_KEY, param)


def check_job(spec: ProvisionSpec, configured: Collection[str]) -> None:
    """What a job will ask for, before anything is spent on it. Error: InvalidArgument."""
    try:
        check_spec(spec, configured)
    except InvalidArgument as error:
        param = error.context["param"]
        if (field := OF_A_TEMPLATE.get(param)) is None:
            raise
        message = error.message.replace(f"'{param}'", f"'{field}'", 1)
        raise InvalidArgument(message, **{**error.context, "param": field}) from error


def check_spec(spec: ProvisionSpec, configured: Collection[str]) -> None:
    """`configured`: names of providers. Error: InvalidArgument, also for a GPU that comes with different amounts of memory."""
    if spec.spot:
        raise _wrong("no provider here has interruptible machines; leave it out", "spot")
    _check_providers(spec.providers, configured)
    _check_names(spec.regions, "regions")
    if spec.max_hourly_price_usd is not None and not 0 <= spec.max_hourly_price_usd < float("inf"):
        raise _wrong("it must be a number of US dollars, not below 0", "max_hourly_price_usd")
    _check_labels(spec.labels)
    _check_text(spec.image, LONGEST_IMAGE, dotted(ROOT, "image"))
    if len(spec.groups) > 1:
        raise _wrong("one group of machines is possible today", "groups")
    for number, group in enumerate(spec.groups):
        _check_group(group, "groups", number)


def _check_group(group: Group, *path: object) -> None:
    if group.replicas != 1:
        raise _wrong("1 machine is possible today", *path, "replicas")
    if not 0 <= group.gpus_per_replica <= MOST_GPUS:
        raise _wrong(f"it must be from 0 (a CPU) to {MOST_GPUS}", *path, "gpus_per_replica")
    preference = group.accelerator_preference
    types = dotted(ROOT, *path, "accelerator_preference", "preferred_types")
    _check_names(preference.preferred_types, *path, "accelerator_preference", "preferred_types")
    if group.gpus_per_replica and not preference.preferred_types:
        message = f"Missing required parameter: '{types}'. Name the accelerators that will do, such as H100."
        raise InvalidArgument(message, param=types, code="missing_required_parameter")
    if preference.preferred_types and not group.gpus_per_replica:
        raise _wrong("it is 0, but accelerators are named", *path, "gpus_per_replica")
    if not 0 <= preference.min_memory_gb <= MOST_MEMORY_GB:
        raise _wrong(f"it must be from 0 to {MOST_MEMORY_GB}", *path, "accelerator_preference", "min_memory_gb")
    for number, name in enumerate(preference.preferred_types):
        gpus.check(name, param=f"{types}.{number}", min_memory_gb=preference.min_memory_gb)


def _check_providers(names: Sequence[str], configured: Collection[str]) -> None:
    _check_names(names, "providers")
    for name in names:
        if name not in configured:
            listed = ", ".join(sorted(configured))
            raise _wrong(f"'{name[:LONGEST_NAME]}' is not configured here. Configured are: {listed}", "providers")
    if len(set(names)) < len(names):
        raise _wrong("a name stands there twice", "providers")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MOST_ENTRIES:
        raise _wrong(f"at most {MOST_ENTRIES} are possible", "labels")
    for name, value in labels.items():
        _check_text(name, LONGEST_NAME, dotted(ROOT, "labels"))
        _check_text(value, LONGEST_NAME, dotted(ROOT, "labels", name))


def _check_names(names: Sequence[str], *path: object) -> None:
    """A short list of short names."""
    if len(names) > MOST_ENTRIES:
        raise _wrong(f"at most {MOST_ENTRIES} are possible", *path)
    for number, name in enumerate(names):
        if not name.strip():
            raise _wrong("it is empty", *path, number)
        _check_text(name, LONGEST_NAME, dotted(ROOT, *path, number))


def _check_text(text: str, longest: int, param: str) -> None:
    if len(text) > longest or not text.isprintable():
        message = f"Invalid value for '{param}': it must be at most {longest} printable characters."
        raise InvalidArgument(message, param=param, code="invalid_value")


def _wrong(why: str, *path: object) -> InvalidArgument:
    param = dotted(ROOT, *path)
    return InvalidArgument(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")
