"""What a batch wants on its machine: where that is, and vLLM's words. Nothing here knows SSH."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.kit.engines import table as engines
from services.kit.engines.flags import render
from services.kit.engines.vllm import VLLM
from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.spec.addresses import AddressPolicy
from services.kit.spec.ssh import SshOptions, check_ssh_engine, is_reserved, parse_ssh
from services.kit.spec.template import CONTROL, ModelSource, TemplateSpec
from services.runner.runtimes.base import RuntimeFailed, Spec

# It becomes the name of a folder and of a container.
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
SERVED_NAME = re.compile(r"--served[-_]model[-_]name(?:=|$)")
# Said again by us, behind everything, so that they have no effect.
OVERRIDDEN = re.compile(r"--(?:host|port)(?:=|$)")
HEALTH_PATH = "/health"
# Places that vLLM loads from by itself.
LOADABLE = ("huggingface", "local", "s3")


@dataclass(frozen=True, kw_only=True)
class Plan:
    host: str
    port: int
    user: str
    host_key: str | None
    provision_id: str
    http_base_url: str | None
    image: str | None
    model: str
    flags: tuple[str, ...]
    """Of `vllm serve`, without host and port."""
    health_path: str


def plan(spec: Spec, target: str, user: str, settings: Settings, policy: AddressPolicy) -> Plan:
    """Error: RuntimeFailed that no other try makes good."""
    try:
        options = parse_ssh(target, spec.block.options(), policy=policy, flags="any")
        if spec.template is not None:
            check_ssh_engine(spec.template.engine.type)
        model, flags = _words(spec, options)
    except InvalidArgument as error:
        raise RuntimeFailed(error.message, retryable=False) from error
    if options.host is None:
        raise _hopeless("no machine: the batch has no runtime.options.host")
    if not KEY.fullmatch(spec.key):
        raise _hopeless("the batch's id cannot be a folder's name")
    template = spec.template
    return Plan(
        host=options.host,
        port=options.ssh_port,
        user=options.ssh_user or user,
        host_key=options.host_key,
        provision_id=str((spec.block.resource_allocation or {}).get("provision_id") or ""),
        http_base_url=options.http_base_url,
        image=options.image or (template.engine.image if template else None) or settings.ssh.engine_image,
        model=model,
        flags=flags,
        health_path=template.engine.health_endpoint if template else HEALTH_PATH,
    )


def _words(spec: Spec, options: SshOptions) -> tuple[str, tuple[str, ...]]:
    """The model, and everything behind it. Error: InvalidArgument, RuntimeFailed."""
    template = spec.template
    chosen = options.model if options.model != spec.block.model else None
    words: list[str] = []
    if chosen is None and template is not None:
        model = _checked_source(template.model_source).uri
        beside = template.model_source.model_dump(include={"revision", "tokenizer_path", "chat_template_path"})
        words += render(VLLM.model, beside, "model_source")
    else:
        model = chosen or spec.model or ""
    if not model or model.startswith("-") or CONTROL.search(model):
        raise _hopeless("no model: give aibrix.model, runtime.options.model or model_template")
    words += _flags(spec, template, options)
    served = spec.model or options.model
    if served and served != model and not any(map(SERVED_NAME.match, words)):
        # Behind `=`, since a bare value after this flag, which takes several, may swallow what follows.
        words.append(f"--served-model-name={served}")
    return model, tuple(words)


def _flags(spec: Spec, template: TemplateSpec | None, options: SshOptions) -> tuple[str, ...]:
    """`vllm_args`, else the template's. What the planner leaves out it left out on purpose (CLOUD_RENDER_ENGINE_ARGS)."""
    if options.vllm_args is not None:
        return tuple(options.vllm_args)
    if template is None:
        return ()
    rendered = () if spec.block.resource_allocation is not None else engines.flags(template)
    given = template.engine.serve_args
    if any(is_reserved(word) and not OVERRIDDEN.match(word) for word in given):
        raise _hopeless("engine.serve_args say how the engine is reached, which is the runtime's business here")
    return (*rendered, *given)


def _checked_source(source: ModelSource) -> ModelSource:
    if source.type not in LOADABLE:
        raise _hopeless(f"vLLM does not load from {source.type}: download the model first")
    return source


def _hopeless(why: str) -> RuntimeFailed:
    return RuntimeFailed(why, retryable=False)
