"""Endpoints that are there already: nothing is started, nothing is ended.

A stored credential goes to the host that its operator bound it to, never to a host that a user chose. For

    AIBRIX_ENDPOINT_KEY_ACME=sk-...
    AIBRIX_ENDPOINT_KEY_ACME_HOST=https://api.acme.example

a batch may say `api_key_env: AIBRIX_ENDPOINT_KEY_ACME` with a `base_url` on exactly this scheme, host and port; a default
endpoint there gets the key by itself. Any other variable may be named only where `external.allowed_hosts` is `*`.
"""

from __future__ import annotations

from typing import ClassVar

from services.kit.errors import InvalidArgument
from services.kit.settings import ENDPOINT_KEY_PREFIX, Settings, variable, variable_names
from services.kit.spec.addresses import AddressPolicy, Url, parse_url
from services.kit.spec.block import EXTERNAL
from services.kit.spec.external import ExternalOptions, parse_external
from services.runner.runtimes.base import Endpoint, Gone, Handle, Probe, Ready, RuntimeFailed, Spec

HOST_SUFFIX = "_HOST"
DEFAULTS = "AIBRIX_DEFAULT_ENDPOINT"


class External:
    target: ClassVar[str] = EXTERNAL

    def __init__(self, settings: Settings) -> None:
        self._policy = AddressPolicy.from_setting(settings.external.allowed_hosts)

    async def launch(self, spec: Spec) -> Handle:
        return {"key": spec.key, "endpoints": [endpoint.base_url for endpoint in self._endpoints(spec)]}

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        """From the batch and the settings of today: the handle holds no secret, so it is not enough."""
        try:
            return Ready(self._endpoints(spec))
        except RuntimeFailed as failure:
            return Gone(failure.why)

    async def release(self, handle: Handle) -> None:
        """Nothing was taken."""

    async def list(self) -> list[Handle]:
        return []

    async def close(self) -> None:
        """Nothing is held."""

    def _endpoints(self, spec: Spec) -> tuple[Endpoint, ...]:
        try:
            options = parse_external(spec.block.options(), self._policy)
            if options.base_url is not None:
                return (self._chosen(options, options.base_url),)
            return tuple(_default(url) for url in spec.default_endpoints) or _none()
        except InvalidArgument as error:
            raise RuntimeFailed(error.message, retryable=False) from error

    def _chosen(self, options: ExternalOptions, base_url: str) -> Endpoint:
        headers = dict(options.headers)
        if options.api_key_env is not None:
            headers |= _authorization(self._key(options.api_key_env, parse_url(base_url)))
        return Endpoint(base_url=base_url, headers=headers, policy=self._policy)

    def _key(self, name: str, url: Url) -> str:
        bound_to = variable(name + HOST_SUFFIX)
        if bound_to is None and not self._policy.anything:
            raise RuntimeFailed(
                f"{name} may not be used: {name}{HOST_SUFFIX} does not say for which host", retryable=False
            )
        if bound_to is not None and _origin(name, bound_to) != url.origin():
            raise RuntimeFailed(f"{name} may not be sent to {url.origin()}: it is for another host", retryable=False)
        return _required(name)


def _default(base_url: str) -> Endpoint:
    """The operator's own endpoint: any address, and the key that is bound to its host, if there is one."""
    url = parse_url(base_url, param=DEFAULTS)
    for companion in variable_names(ENDPOINT_KEY_PREFIX):
        name = companion.removesuffix(HOST_SUFFIX)
        if name != companion and _origin(name, variable(companion) or "") == url.origin():
            return Endpoint(base_url=str(url), headers=_authorization(_required(name)))
    return Endpoint(base_url=str(url))


def _none() -> tuple[Endpoint, ...]:
    raise RuntimeFailed(f"no endpoint: the batch names none, and the server has no {DEFAULTS}", retryable=False)


def _origin(name: str, text: str) -> str:
    try:
        return parse_url(text, param=name + HOST_SUFFIX).origin()
    except InvalidArgument as error:
        raise RuntimeFailed(error.message, retryable=False) from error


def _required(name: str) -> str:
    key = variable(name)
    if not key:
        raise RuntimeFailed(f"the variable {name} is not set where the runner runs", retryable=False)
    if not (key.isascii() and key.isprintable()):
        raise RuntimeFailed(f"the variable {name} holds characters that a header cannot carry", retryable=False)
    return key


def _authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
