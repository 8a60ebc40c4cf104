"""The options of External, and that a stored credential goes to its own host only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.runtime_settings import External as ExternalSettings
from services.kit.settings import Settings
from services.kit.spec.addresses import AddressPolicy
from services.kit.spec.external import parse_external
from services.kit.spec.local import parse_local
from services.runner.runtimes.base import Endpoint, Gone, Ready, RuntimeFailed
from services.runner.runtimes.external import External
from tests.runtimes.support import external_spec

PUBLIC_ONLY = AddressPolicy()
BASE = "https://api.acme.example"
KEY = "AIBRIX_ENDPOINT_KEY_ACME"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"base_url": 5}, "base_url"),
        ({"base_url": ""}, "base_url"),
        ({"base_url": "http://127.0.0.1"}, "base_url"),
        ({"http_base_url": "http://10.0.0.1"}, "http_base_url"),
        ({"base_url": BASE, "http_base_url": "https://other.example"}, "http_base_url"),
        ({"base_url": BASE, "ssh_user": "root"}, "ssh_user"),
        ({"host": "1.2.3.4"}, "host"),
        ({"base_url": BASE, "api_key_env": "PATH"}, "api_key_env"),
        ({"base_url": BASE, "api_key_env": "AIBRIX_OBJECTS__SECRET_ACCESS_KEY"}, "api_key_env"),
        ({"base_url": BASE, "api_key_env": KEY + "_HOST"}, "api_key_env"),
        ({"base_url": BASE, "api_key_env": "A B"}, "api_key_env"),
        ({"base_url": BASE, "api_key_env": KEY, "headers": {"authorization": "x"}}, "api_key_env"),
        ({"api_key_env": KEY}, "api_key_env"),
        ({"headers": {"X-A": "1"}}, "headers"),
        ({"base_url": BASE, "headers": {"X-A": 1}}, "headers.X-A"),
        ({"base_url": BASE, "headers": {"Host": "x"}}, "headers.Host"),
        ({"base_url": BASE, "headers": {"content-length": "1"}}, "headers.content-length"),
        ({"base_url": BASE, "headers": {"Transfer-Encoding": "chunked"}}, "headers.Transfer-Encoding"),
        ({"base_url": BASE, "headers": {"Connection": "close"}}, "headers.Connection"),
        ({"base_url": BASE, "headers": {"Metadata-Flavor": "Google"}}, "headers.Metadata-Flavor"),
        ({"base_url": BASE, "headers": {"X-A": "1\r\nHost: x"}}, "headers.X-A"),
        ({"base_url": BASE, "headers": {"X-A": "1\x00"}}, "headers.X-A"),
        ({"base_url": BASE, "headers": {"X-A": " 1"}}, "headers.X-A"),
        ({"base_url": BASE, "headers": {"X-A": "\u00e4"}}, "headers.X-A"),
        ({"base_url": BASE, "headers": {"X-A: b\r\nX": "1"}}, "headers"),
        ({"base_url": BASE, "headers": {"": "1"}}, "headers"),
        ({"base_url": BASE, "headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a"),
        ({"base_url": BASE, "headers": {f"X-{n}": "1" for n in range(33)}}, "headers"),
    ],
)
def test_wrong_options_are_refused_with_their_path(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_external(options, PUBLIC_ONLY)
    assert refused.value.context["param"] == f"aibrix.runtime.options.{param}"


def test_options_in_their_plain_form() -> None:
    given = parse_external({"http_base_url": BASE + "/v1/", "headers": {"X-Team": "a b"}}, PUBLIC_ONLY)
    assert (given.base_url, given.http_base_url, given.headers) == (BASE, None, {"X-Team": "a b"})
    assert parse_external({"base_url": BASE, "http_base_url": BASE + "/v1"}, PUBLIC_ONLY).base_url == BASE
    assert parse_external({}).base_url is None
    assert parse_external({"base_url": "http://127.0.0.1:1"}).base_url == "http://127.0.0.1:1"
    assert "a b" not in repr(given)


def test_local_options() -> None:
    assert parse_local({}).command is None
    assert parse_local({"command": "vllm"}, {"vllm"}).command == "vllm"
    for options in ({"command": "other"}, {"command": "rm -rf"}, {"command": ["rm"]}, {"args": "x"}):
        with pytest.raises(InvalidArgument) as refused:
            parse_local(options, {"vllm"})
        assert refused.value.context["param"].startswith("aibrix.runtime.options.")


def runtime(tmp_path: Path, allowed_hosts: str = "") -> External:
    return External(Settings(data_dir=tmp_path, external=ExternalSettings(allowed_hosts=allowed_hosts)))


async def endpoints(external: External, options: dict[str, Any], *defaults: str) -> tuple[Endpoint, ...]:
    """What the batch's requests would be sent to; and no secret is in the handle."""
    spec = external_spec(options, *defaults)
    handle = await external.launch(spec)
    assert "sk-" not in str(handle)
    ready = await external.probe(spec, handle)
    assert isinstance(ready, Ready)
    assert handle["endpoints"] == [endpoint.base_url for endpoint in ready.endpoints]
    assert "sk-" not in repr(ready)
    return ready.endpoints


async def failure(external: External, options: dict[str, Any], *defaults: str) -> str:
    spec = external_spec(options, *defaults)
    with pytest.raises(RuntimeFailed) as failed:
        await external.launch(spec)
    assert not failed.value.retryable
    assert "sk-" not in failed.value.why
    assert isinstance(await external.probe(spec, {"key": "batch_1", "endpoints": [BASE]}), Gone)
    return failed.value.why


async def test_base_url_of_the_batch_has_the_policy(tmp_path: Path) -> None:
    (found,) = await endpoints(runtime(tmp_path), {"base_url": BASE + "/v1", "headers": {"X-Team": "a"}})
    assert found == Endpoint(base_url=BASE, headers={"X-Team": "a"}, policy=PUBLIC_ONLY)
    assert "127.0.0.1" in await failure(runtime(tmp_path), {"base_url": "http://127.0.0.1:8000"})


async def test_default_endpoints_are_the_operators_own(tmp_path: Path) -> None:
    found = await endpoints(runtime(tmp_path), {}, "http://127.0.0.1:8000/v1", "http://gpu:8000")
    assert found == (Endpoint(base_url="http://127.0.0.1:8000"), Endpoint(base_url="http://gpu:8000"))
    assert "AIBRIX_DEFAULT_ENDPOINT" in await failure(runtime(tmp_path), {})


async def test_key_goes_to_the_host_that_it_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-canary-1")
    monkeypatch.setenv(KEY + "_HOST", BASE)
    external = runtime(tmp_path)
    (chosen,) = await endpoints(external, {"base_url": BASE + "/v1", "api_key_env": KEY})
    default, other = await endpoints(external, {}, BASE + "/v1", "https://other.example")
    assert chosen.headers == default.headers == {"Authorization": "Bearer sk-canary-1"}
    assert other.headers == {}


@pytest.mark.parametrize("allowed_hosts", ["", "*"])
@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "http://api.acme.example",
        "https://api.acme.example:8443",
        "https://api.acme.example.evil.test",
        "https://sub.api.acme.example",
    ],
)
async def test_key_goes_to_no_other_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, allowed_hosts: str
) -> None:
    monkeypatch.setenv(KEY, "sk-canary-1")
    monkeypatch.setenv(KEY + "_HOST", BASE)
    external = runtime(tmp_path, allowed_hosts)
    assert KEY in await failure(external, {"base_url": url, "api_key_env": KEY})
    (without,) = await endpoints(external, {"base_url": url})
    (default,) = await endpoints(external, {}, url)
    assert without.headers == default.headers == {}


async def test_key_that_is_bound_to_no_host_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-canary-1")
    assert KEY + "_HOST" in await failure(runtime(tmp_path), {"base_url": BASE, "api_key_env": KEY})


async def test_any_variable_may_be_named_where_there_is_one_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "sk-canary-1")
    options = {"base_url": "http://127.0.0.1:8000", "api_key_env": "ACME_KEY"}
    (found,) = await endpoints(runtime(tmp_path, "*"), options)
    assert found.headers == {"Authorization": "Bearer sk-canary-1"}
    assert "api_key_env" in await failure(runtime(tmp_path, "127.0.0.1"), options)


@pytest.mark.parametrize("value", [None, "", "sk-a\r\nX: y", "sk-\u00e4"])
async def test_key_that_is_not_there_or_cannot_be_sent_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.setenv(KEY + "_HOST", BASE)
    if value is not None:
        monkeypatch.setenv(KEY, value)
    assert KEY in await failure(runtime(tmp_path), {"base_url": BASE, "api_key_env": KEY})
    assert KEY in await failure(runtime(tmp_path), {}, BASE)
