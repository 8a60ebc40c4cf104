"""Checks of what CreateBatch asks for: everything that is wrong before the input file is looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from services.kit.checks import pairs
from services.kit.engines import table as engines
from services.kit.errors import InvalidArgument
from services.kit.settings import Templates
from services.kit.spec.block import EXTERNAL, Block, dotted, parse_block
from services.kit.spec.catalog import unknown
from services.kit.spec.external import parse_external
from services.kit.spec.kubernetes import (
    KUBERNETES,
    KUBERNETES_JOB,
    KUBERNETES_TARGETS,
    check_kubernetes,
    parse_kubernetes,
)
from services.kit.spec.local import parse_local
from services.kit.spec.resolved import ResolvedTemplate
from services.kit.spec.ssh import SSH_TARGETS, check_ssh_engine, parse_ssh
from services.kit.spec.template import TemplateSpec
from services.metadata.service import checks
from services.metadata.validation import ENDPOINTS

LOCAL = "Local"
SPEC = ("aibrix", "model_template", "spec")
OVERRIDES = ("aibrix", "model_template", "overrides")
BUILT_IN_TARGETS = (EXTERNAL, KUBERNETES, KUBERNETES_JOB, "LambdaCloud", LOCAL, "RunPod")
LARGEST_BLOCK = 1024 * 1024


def check_endpoint(endpoint: str) -> None:
    checks.required(endpoint=endpoint)
    checks.one_of("endpoint", endpoint, tuple(ENDPOINTS))


def check_metadata(text: str | None) -> None:
    """Error: InvalidArgument, param `metadata` or `metadata.<key>`."""
    if text is None:
        return
    checks.no_nul(metadata=text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("Invalid 'metadata': it is not valid JSON.", param="metadata") from error
    if value is None:
        return
    pairs("metadata", value)


def read_block(text: str | None, *, has_default: bool, inline_flags: Literal["listed", "any"] = "listed") -> Block:
    """The block, after all checks that need no database. `has_default`: the server has default endpoints."""
    if text is not None and len(text.encode()) > LARGEST_BLOCK:
        message = f"Invalid 'aibrix': it is larger than {LARGEST_BLOCK} bytes."
        raise InvalidArgument(message, param="aibrix", code="invalid_value")
    checks.no_nul(aibrix=text)
    block = parse_block(text)
    checks.no_nul(**{"aibrix.model": block.model, "aibrix.runtime.target": block.target()})
    if block.target() == EXTERNAL:
        require_endpoint(parse_external(block.options()).base_url, has_default=has_default)
    elif block.target() == LOCAL and parse_local(block.options()).command is None:
        require_template(block)
    elif block.target() in SSH_TARGETS:
        # The host may be missing: the planner's draft does not know the machine yet.
        parse_ssh(block.target(), block.options(), flags=inline_flags)
    elif block.target() in KUBERNETES_TARGETS:
        parse_kubernetes(block.target(), block.options())
        require_template(block)
    return block


def require_template(block: Block) -> None:
    if block.model_template is None:
        param = "aibrix.model_template"
        message = f"Missing required parameter: '{param}'. Target '{block.target()}' starts the engine of a template"
        message += ", or the operator's command that runtime.options.command names." if block.target() == LOCAL else "."
        raise InvalidArgument(message, param=param, code="missing_required_parameter")


def check_engine(block: Block, template: ResolvedTemplate, limits: Templates) -> None:
    """Whether the engine can be started as the batch wants it. Error: InvalidArgument with the field's path.

    Unless `limits` say otherwise, what users wrote themselves, a template or overrides, may hold only flags that neither read
    files nor load code, and may not wait for ever; an operator's template is not bound.
    """
    if block.target() == EXTERNAL:
        return  # nothing is started
    spec, type = template.spec, template.spec.engine.type
    if block.target() in SSH_TARGETS:
        check_ssh_engine(type)
    on_kubernetes = block.target() in KUBERNETES_TARGETS
    starts_it = on_kubernetes or (block.target() == LOCAL and parse_local(block.options()).command is None)
    if starts_it:
        engines.adapter_of(spec)
    if on_kubernetes:
        check_kubernetes(spec)
    if limits.inline_flags == "listed":
        check_known_engine(template)
        changed = (template.overrides or {}).get("engine_args", {})
        engines.check_listed_args(type, changed, (*OVERRIDES, "engine_args"))
        if template.source == "inline":
            param = ".".join((*SPEC, "engine", "ready_timeout_seconds"))
            checks.between(param, spec.engine.ready_timeout_seconds, 10, limits.inline_ready_timeout_s)
            engines.check_listed_args(type, given_args(spec), (*SPEC, "engine_args"))
            engines.check_listed_model(type, spec.model_source, (*SPEC, "model_source"))
            engines.check_listed_flags(type, spec.engine.serve_args, (*SPEC, "engine", "serve_args"))
    if starts_it:
        engines.check_renderable(spec, served_model=block.model)


def check_known_engine(template: ResolvedTemplate) -> None:
    """Nobody here can tell which flags of an engine without an adapter are harmless."""
    engine, changed = template.spec.engine, (template.overrides or {}).get("engine_args")
    inline = template.source == "inline"
    given = {
        (*SPEC, "engine", "serve_args"): inline and engine.serve_args,
        (*SPEC, "engine_args"): inline and template.spec.engine_args.model_fields_set,
        (*OVERRIDES, "engine_args"): changed,
    }
    for path, flags in given.items():
        if flags and engine.type not in engines.ADAPTERS:
            param = ".".join(path)
            message = f"Invalid value for '{param}': only a template of the operator's registry may set flags of {engine.type}."
            raise InvalidArgument(message, param=param, code="invalid_value")


def given_args(spec: TemplateSpec) -> dict[str, Any]:
    return spec.engine_args.model_dump(exclude_unset=True, exclude_none=True)


def require_endpoint(url: str | None, *, has_default: bool) -> None:
    if url is None and not has_default:
        param = "aibrix.runtime.options.base_url"
        message = (
            f"Missing required parameter: '{param}'. The batch names no endpoint, and this server has no default "
            "endpoint (AIBRIX_DEFAULT_ENDPOINT)."
        )
        raise InvalidArgument(message, param=param, code="missing_required_parameter")


def check_target(target: str, reported: Iterable[str]) -> None:
    """`target` must be built in, or one that a runner reported lately; whether a runner is free now does not matter."""
    others = set(reported).difference(BUILT_IN_TARGETS)
    if target not in others and target not in BUILT_IN_TARGETS:
        # A runner may report anything; what people read holds plain names.
        shown = sorted(name for name in others if name.strip() == name and dotted(name) == name != "")
        raise unknown("aibrix.runtime.target", dotted(target), "targets", [*BUILT_IN_TARGETS, *shown])
