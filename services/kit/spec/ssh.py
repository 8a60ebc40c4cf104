"""`runtime.options` of the targets RunPod and LambdaCloud: a machine that is reached by SSH, and what to start there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from services.kit.engines.table import check_listed_flags
from services.kit.errors import InvalidArgument
from services.kit.spec.addresses import AddressPolicy, as_address, parse_url
from services.kit.spec.block import as_invalid
from services.kit.spec.client import Strict
from services.kit.spec.template import CONTROL, MOST_CHARACTERS

RUNPOD = "RunPod"
LAMBDA_CLOUD = "LambdaCloud"
SSH_TARGETS = (LAMBDA_CLOUD, RUNPOD)
PATH = "aibrix.runtime.options"
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
HOST_KEY = re.compile(
    r"SHA256:[A-Za-z0-9+/]{43}"
    r"|(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{40,4096}={0,3}(?: [ -~]{0,256})?",
    re.ASCII,
)
# Where the engine listens, and who may talk to it, is the runtime's business. A beginning of one of them is refused as
# well: argparse takes it for the whole.
RESERVED = ("--host", "--port", "--api-key", "--uds", "--ssl-keyfile", "--root-path", "--config")
TLS = "--ssl-"
SHORTEST_BEGINNING = len("--h")
# A file with flags of its own.
FLAG_FILE = "@"


def _host(text: str) -> str:
    """A DNS name, or an address as it is usually written."""
    if as_address(text) is not None:
        return text
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or labels[-1].isdigit() or not all(LABEL.fullmatch(label) for label in labels):
        raise ValueError("it must be a DNS name or an IP address")
    return text


def _no_flag(text: str) -> str:
    if text.startswith("-") or text != text.strip():
        raise ValueError("it may not begin with a dash, nor begin or end with a space")
    return _plain(text)


def _plain(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("control characters are not allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is not valid Unicode") from error
    return text


class SshOptions(Strict):
    """Where the machine is and what runs there. What a resource manager made, the planner fills in."""

    host: Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_host)] | None = None
    ssh_port: int = Field(default=22, ge=1, le=65_535)
    ssh_user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")] | None = None
    """None: the target's own, see docs/runtimes-ssh.md."""
    host_key: Annotated[str, Field(max_length=8192)] | None = None
    """Public host key, or its fingerprint `SHA256:...`. None: the first one that is seen is trusted, and no other after it."""
    http_base_url: str | None = Field(default=None, min_length=1, max_length=2048)
    """RunPod: requests go here, not through SSH."""
    model: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_no_flag)] | None = None
    """What vLLM loads. None: the template's model_source, else `aibrix.model`."""
    vllm_args: list[Annotated[str, Field(max_length=MOST_CHARACTERS), AfterValidator(_plain)]] | None = Field(
        default=None, max_length=512
    )
    """Flags of `vllm serve`, one word each."""
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][!-~]{0,511}$")] | None = None
    """LambdaCloud: image of the engine. A pod of RunPod was made from its image already."""


def parse_ssh(
    target: str,
    options: dict[str, Any],
    *,
    policy: AddressPolicy | None = None,
    flags: Literal["listed", "any"] = "listed",
) -> SshOptions:
    """Error: InvalidArgument, param such as `aibrix.runtime.options.ssh_port`.

    Without `policy` addresses are only read, not judged. `flags`: the setting templates.inline_flags.
    """
    try:
        given = SshOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise as_invalid({**first, "loc": ("runtime", "options", *first["loc"])}) from error
    if given.host_key is not None and not HOST_KEY.fullmatch(given.host_key):
        raise _invalid(
            "host_key", "it must be a public key such as 'ssh-ed25519 AAAA...' or a fingerprint 'SHA256:...'"
        )
    _check_args(given.vllm_args or (), flags)
    return given.model_copy(update={"http_base_url": _url(target, given.http_base_url, policy)})


def check_ssh_engine(type: str) -> None:
    """Error: InvalidArgument, for a template whose engine is another than what these targets start."""
    if type != "vllm":
        param = "aibrix.model_template.spec.engine.type"
        message = f"Invalid value for '{param}': '{type}'. The targets {' and '.join(SSH_TARGETS)} start vllm."
        raise InvalidArgument(message, param=param, code="invalid_value")


def _url(target: str, text: str | None, policy: AddressPolicy | None) -> str | None:
    if text is None:
        return None
    if target != RUNPOD:
        raise _invalid("http_base_url", f"the engine of the target {target} is reached through SSH only")
    param = f"{PATH}.http_base_url"
    return policy.check_url(text, param=param) if policy else str(parse_url(text, param=param))


def _check_args(words: Sequence[str], flags: Literal["listed", "any"]) -> None:
    if sum(map(len, words)) > MOST_CHARACTERS:
        raise _invalid("vllm_args", f"all words together may be {MOST_CHARACTERS} characters long")
    for index, word in enumerate(words):
        if is_reserved(word):
            raise _invalid(
                "vllm_args", f"argument {index + 1} may not be set: where the engine listens is the runtime's business"
            )
    if flags == "listed":
        check_listed_flags("vllm", words, ("aibrix", "runtime", "options", "vllm_args"))


def is_reserved(word: str) -> bool:
    """Whether vLLM might take it for a flag that says where it listens, for a file of flags, or for the end of all flags."""
    name = word.partition("=")[0].replace("_", "-")
    if word.startswith(FLAG_FILE) or word == "--":
        return True
    return len(name) >= SHORTEST_BEGINNING and (name.startswith(TLS) or any(flag.startswith(name) for flag in RESERVED))


def _invalid(name: str, why: str) -> InvalidArgument:
    path = f"{PATH}.{name}"
    return InvalidArgument(f"Invalid value for '{path}': {why}.", param=path, code="invalid_value")
