"""`runtime.options` of the target External: an endpoint that is there already. Strict, with the field's path in errors."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, ValidationError

from services.kit.errors import InvalidArgument
from services.kit.settings import ENDPOINT_KEY_PREFIX
from services.kit.spec.addresses import AddressPolicy, parse_url
from services.kit.spec.block import as_invalid
from services.kit.spec.client import Strict

OPTIONS = ("runtime", "options")
PATH = "aibrix.runtime.options"
MAX_HEADERS = 32
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
# Visible ASCII with spaces inside: nothing that ends a header or that two servers read differently.
VALUE = re.compile(r"[!-~](?:[ -~]{0,8190}[!-~])?", re.ASCII)
# Framing is ours; the last five open the metadata services of clouds.
REFUSED_HEADERS = frozenset(
    {
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "metadata",
        "metadata-flavor",
        "x-google-metadata-request",
        "x-aws-ec2-metadata-token",
        "x-aws-ec2-metadata-token-ttl-seconds",
    }
)


class ExternalOptions(Strict):
    """Empty: the server's default endpoints."""

    base_url: str | None = Field(default=None, min_length=1, max_length=2048)
    http_base_url: str | None = Field(default=None, min_length=1, max_length=2048)
    """The seed's name for the same. After `parse_external` only `base_url` is set."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")] | None = None
    """Variable of the runner that holds the key; sent as a bearer token."""
    headers: dict[str, str] = Field(default_factory=dict, max_length=MAX_HEADERS, repr=False)


def parse_external(options: dict[str, Any], policy: AddressPolicy | None = None) -> ExternalOptions:
    """Options with one `base_url` in its plain form. Error: InvalidArgument, param such as `aibrix.runtime.options.headers`.

    Without `policy` the URL is only read, not judged.
    """
    try:
        given = ExternalOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise as_invalid({**first, "loc": (*OPTIONS, *first["loc"])}) from error
    url = _one_url(given, policy)
    if url is None:
        for name in ("api_key_env", "headers"):
            if getattr(given, name):
                raise _invalid(name, "it needs base_url: default endpoints take what their operator gave them")
    _check_headers(given)
    _check_key(given, policy)
    return given.model_copy(update={"base_url": url, "http_base_url": None})


def _one_url(given: ExternalOptions, policy: AddressPolicy | None) -> str | None:
    urls = []
    for name in ("base_url", "http_base_url"):
        text = getattr(given, name)
        if text is not None:
            param = f"{PATH}.{name}"
            urls.append(policy.check_url(text, param=param) if policy else str(parse_url(text, param=param)))
    if len(set(urls)) > 1:
        raise _invalid("http_base_url", "it differs from base_url; give one of them")
    return urls[0] if urls else None


def _check_headers(given: ExternalOptions) -> None:
    seen: set[str] = set()
    for name, value in given.headers.items():
        lower = name.lower()
        if not TOKEN.fullmatch(name):
            raise _invalid("headers", "a name is not a header name")
        if lower in REFUSED_HEADERS:
            raise _invalid(f"headers.{name}", "this header may not be set")
        if lower in seen:
            raise _invalid(f"headers.{name}", "it stands there twice")
        if not VALUE.fullmatch(value):
            raise _invalid(f"headers.{name}", "the value must be printable ASCII, without spaces around it")
        seen.add(lower)
    if given.api_key_env and "authorization" in seen:
        raise _invalid("api_key_env", "the headers hold an Authorization already; give one of them")


def _check_key(given: ExternalOptions, policy: AddressPolicy | None) -> None:
    """Somebody who may choose the host must not choose among all variables of the runner."""
    if given.api_key_env is None or policy is None or policy.anything:
        return
    name = given.api_key_env
    if not name.startswith(ENDPOINT_KEY_PREFIX) or name.endswith("_HOST") or name == ENDPOINT_KEY_PREFIX:
        raise _invalid("api_key_env", f"it must name a variable that begins with {ENDPOINT_KEY_PREFIX}")


def _invalid(name: str, why: str) -> InvalidArgument:
    path = f"{PATH}.{name}"
    return InvalidArgument(f"Invalid value for '{path}': {why}.", param=path, code="invalid_value")
