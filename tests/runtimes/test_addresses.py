"""Where a URL that a user gave may lead: the corpus of refused ones, public ones, and connections that are judged."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from services.kit.errors import InvalidArgument
from services.kit.spec.addresses import AddressPolicy, is_public, parse_url, unwrapped
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.runtimes.addresses import AddressRefused, CheckedConnector, CheckedResolver, connector

PUBLIC_ONLY = AddressPolicy.from_setting("")

REFUSED = [
    # loopback and unspecified
    "http://127.0.0.1",
    "http://127.0.0.1:8000",
    "http://127.255.255.254:8000",
    "http://0.0.0.0:8000",
    "http://[::1]:8000",
    "http://[::]:8000",
    "http://localhost:8000",
    "http://LOCALHOST:8000",
    "http://foo.localhost:8000",
    "http://localhost.localdomain",
    # private networks
    "http://10.0.0.1:8000",
    "http://10.255.255.255",
    "http://172.16.0.1",
    "http://172.31.255.255:8000",
    "http://192.168.1.1",
    "http://100.64.0.1",
    "http://[fc00::1]",
    "http://[fd00:ec2::254]",
    "http://[fe80::1]",
    "http://[fec0::1]",
    "http://router",
    "http://metadata",
    "http://metadata.google.internal",
    "http://engine.default.svc.cluster.local:8000",
    "http://printer.lan",
    "http://1.0.0.127.in-addr.arpa",
    # cloud metadata and reserved
    "http://169.254.169.254",
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.170.2",
    "http://168.63.129.16",
    "http://100.100.100.200",
    "http://192.0.0.192",
    "http://192.0.0.1",
    "http://192.0.2.1",
    "http://192.88.99.1",
    "http://198.18.0.1",
    "http://198.51.100.7",
    "http://203.0.113.9",
    "http://224.0.0.1",
    "http://240.0.0.1",
    "http://255.255.255.255",
    "http://[ff02::1]",
    "http://[2001:db8::1]",
    "http://[3fff::1]",
    "http://[100::1]",
    # IPv4 inside of IPv6
    "http://[::ffff:127.0.0.1]",
    "http://[::ffff:a9fe:a9fe]",
    "http://[::169.254.169.254]",
    "http://[::ffff:0:127.0.0.1]",
    "http://[2002:a9fe:a9fe::]",
    "http://[2002:7f00:1::1]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[64:ff9b::10.0.0.1]",
    "http://[64:ff9b:1::1]",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    # numbers that resolvers read as addresses
    "http://2852039166",
    "http://0xa9fea9fe",
    "http://0xa9.0xfe.0xa9.0xfe",
    "http://0251.0376.0251.0376",
    "http://0177.0.0.1",
    "http://169.254.43518",
    "http://127.1",
    "http://127.0.1:8000",
    "http://0",
    "http://0x7f.1",
    "http://1.2.3.4.5",
    "http://foo.0x7f000001",
    "http://8.8.8.08",
    "http://017700000001",
    # parsers disagree
    "http://example.com@127.0.0.1",
    "http://127.0.0.1@example.com",
    "http://user:password@example.com",
    "http://@example.com",
    "http://example.com\\@127.0.0.1",
    "http://127.0.0.1\\.example.com",
    "http:\\\\127.0.0.1",
    "http://example.com#@127.0.0.1",
    "http://example.com#fragment",
    "http://example.com?x=1",
    "http://example.com?@127.0.0.1",
    "http://example.com/v1?key=1",
    "http://127.0.0.1%2f.example.com",
    "http://example.com%00.evil.test",
    "http://example.com\r\nHost: 127.0.0.1",
    "http://example.com\n",
    " http://example.com",
    "http://exa\tmple.com",
    "http://example.com/\x00",
    "http://\u2460\u2461\u2466.0.0.1",
    "http://\uff11\uff12\uff17.0.0.1",
    "http://ex\u00e4mple.com",
    "http://example\u3002com",
    "http://[::1%25eth0]",
    "http://[fe80::1%eth0]",
    "http://[v1.fe80::a]",
    "http://[::1",
    "http://::1",
    "http://[127.0.0.1]",
    "http://example.com/../admin",
    "http://example.com/./v1",
    "http://example.com//v1",
    "http://example.com/%2e%2e/admin",
    "http://example..com",
    "http://.example.com",
    "http://example.com.",
    "http://localhost.",
    "http://-example.com",
    "http://" + "a" * 64 + ".com",
    # schemes and ports
    "file:///etc/passwd",
    "ftp://example.com",
    "gopher://example.com",
    "unix:///run/docker.sock",
    "//example.com",
    "example.com",
    "http:example.com",
    "http:///example.com",
    "http://",
    "",
    "javascript://example.com",
    "http://example.com:0",
    "http://example.com:65536",
    "http://example.com:99999999",
    "http://example.com:",
    "http://example.com:80:80",
    "http://example.com:22",
    "http://example.com:25",
    "http://8.8.8.8:53",
    "http://example.com:\u0661\u0662",
]

ACCEPTED = {
    "https://api.openai.com/v1": "https://api.openai.com",
    "https://api.openai.com/v1/": "https://api.openai.com",
    "HTTPS://API.OpenAI.com": "https://api.openai.com",
    "https://api.openai.com:443/": "https://api.openai.com",
    "http://example.com:80": "http://example.com",
    "http://example.com:443/openai/deployments/x/v1": "http://example.com:443/openai/deployments/x",
    "https://abc-8000.proxy.example.net": "https://abc-8000.proxy.example.net",
    "http://8.8.8.8:8000/v1": "http://8.8.8.8:8000",
    "http://[2606:4700:4700::1111]:8000": "http://[2606:4700:4700::1111]:8000",
    "http://[2606:4700:4700:0:0:0:0:1111]": "http://[2606:4700:4700::1111]",
    "http://xn--exmple-cua.com": "http://xn--exmple-cua.com",
    "https://127.0.0.1.nip.io": "https://127.0.0.1.nip.io",
}


def test_the_corpus_is_large_enough() -> None:
    assert len(set(REFUSED)) >= 60


@pytest.mark.parametrize("url", REFUSED)
def test_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        PUBLIC_ONLY.check_url(url, param="aibrix.runtime.options.base_url")
    assert refused.value.context["param"] == "aibrix.runtime.options.base_url"
    assert "password" not in refused.value.message


@pytest.mark.parametrize(("url", "plain"), ACCEPTED.items())
def test_public_ones_are_accepted_in_their_plain_form(url: str, plain: str) -> None:
    assert PUBLIC_ONLY.check_url(url) == plain
    assert PUBLIC_ONLY.check_url(plain) == plain


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%2", "::ffff:10.0.0.1", "x"]
)
def test_a_public_name_at_an_inner_address_is_refused(address: str) -> None:
    assert not PUBLIC_ONLY.allows_address("127.0.0.1.nip.io", address, 8000)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_a_public_name_at_a_public_address_is_allowed(address: str) -> None:
    assert PUBLIC_ONLY.allows_address("example.com", address, 8000)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_is_public_is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    inner = unwrapped(address)
    if inner is not None and is_public(inner):
        assert inner.is_global
        assert not inner.is_multicast
        assert not inner.is_reserved
        assert not inner.is_link_local


@given(st.text("aX.1f0:/@[]-_\\#?%\t", min_size=1, max_size=12).map("http://".__add__))
def test_other_parsers_read_an_accepted_url_alike(url: str) -> None:
    try:
        found = parse_url(url)
    except InvalidArgument:
        return
    for text in (url, str(found)):
        for host, port in ((urlsplit(text).hostname, urlsplit(text).port), (URL(text).host, URL(text).explicit_port)):
            assert host is not None
            assert ipaddress_or_name(host) == found.host
            assert (port or {"http": 80, "https": 443}[found.scheme]) == found.port


def ipaddress_or_name(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def test_what_the_operator_lists_is_allowed_and_nothing_else() -> None:
    policy = AddressPolicy.from_setting("localhost:8000, engine.internal,10.1.0.0/16, [::1]:9000, 192.168.0.5:81, gpu")
    for url in (
        "http://localhost:8000",
        "http://engine.internal:81/v1",
        "http://ENGINE.internal",
        "http://10.1.255.1:22",
        "http://[::ffff:10.1.0.1]:8000",
        "http://[::1]:9000",
        "http://192.168.0.5:81",
        "http://gpu:8000",
        "https://api.openai.com",
    ):
        assert policy.check_url(url)
    for url in (
        "http://localhost:8001",
        "http://sub.engine.internal",
        "http://10.2.0.1",
        "http://[::1]:9001",
        "http://127.0.0.1:8000",
        "http://192.168.0.5",
        "http://gpu2:8000",
    ):
        with pytest.raises(InvalidArgument):
            policy.check_url(url)
    assert policy.allows_address("localhost", "127.0.0.1", 8000)
    assert not policy.allows_address("localhost", "127.0.0.1", 8001)
    assert not policy.allows_address("evil.test", "127.0.0.1", 8000)


def test_anything_is_still_only_a_plain_url() -> None:
    policy = AddressPolicy.from_setting("*")
    assert policy.check_url("http://127.0.0.1:1/v1") == "http://127.0.0.1:1"
    assert policy.check_url("http://router") == "http://router"
    for url in ("http://2130706433", "http://a@127.0.0.1", "file:///etc/passwd", "http://127.1"):
        with pytest.raises(InvalidArgument):
            policy.check_url(url)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "http://x", "a b", "x:y", "127.1", "[::1", "x:99999999"])
def test_setting_that_says_nothing_clear_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="AIBRIX_EXTERNAL__ALLOWED_HOSTS"):
        AddressPolicy.from_setting(text)


class Names(AbstractResolver):
    """A name server of the test's: each question gets the next of the answers, the last one for ever."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in found
        ]

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
async def canary() -> AsyncIterator[MockEngine]:
    async with mock_engine() as engine:
        yield engine


async def refused_by(connection: aiohttp.TCPConnector, url: str) -> None:
    async with aiohttp.ClientSession(connector=connection) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await session.post(url + "/v1/chat/completions", json={})
    assert isinstance(refused.value.os_error, AddressRefused)


@pytest.mark.parametrize("answer", [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("2606:4700:4700::1111", "::1")])
async def test_name_that_leads_inside_is_refused_before_anything_is_sent(
    canary: MockEngine, answer: tuple[str, ...]
) -> None:
    """With any address inside, the name is refused as a whole."""
    port = canary.url.rpartition(":")[2]
    await refused_by(CheckedConnector(PUBLIC_ONLY, resolver=Names(answer)), f"http://rebind.test:{port}")
    assert canary.requests.count == 0


async def test_rebinding_gains_nothing(canary: MockEngine) -> None:
    """Public when the batch was created, inside when it runs: the address of the connection is what is judged."""
    names = Names(("8.8.8.8",), ("127.0.0.1",))
    port = int(canary.url.rpartition(":")[2])
    first = await CheckedResolver(PUBLIC_ONLY, names).resolve("rebind.test", port)
    assert first[0]["host"] == "8.8.8.8"
    await refused_by(CheckedConnector(PUBLIC_ONLY, resolver=names), f"http://rebind.test:{port}")
    assert canary.requests.count == 0
    assert names.asked == 2


async def test_address_without_a_name_is_judged_too(canary: MockEngine) -> None:
    await refused_by(connector(PUBLIC_ONLY), canary.url)
    assert canary.requests.count == 0


async def test_allowed_name_and_allowed_address_connect(canary: MockEngine) -> None:
    port = canary.url.rpartition(":")[2]
    policy = AddressPolicy.from_setting(f"engine.test:{port}, 127.0.0.1:{port}")
    names = Names(("127.0.0.1",))
    async with aiohttp.ClientSession(connector=CheckedConnector(policy, resolver=names)) as session:
        for host in ("engine.test", "127.0.0.1"):
            async with session.get(f"http://{host}:{port}/health") as answer:
                assert answer.status == 200


async def test_redirect_to_another_place_is_judged_like_any_connection(canary: MockEngine) -> None:
    """Redirects are off in the runner; should they ever be on, the second wall stands."""
    async with mock_engine() as engine:
        engine.faults.add("redirect", location=canary.url + "/v1/models")
        policy = AddressPolicy.from_setting(engine.url.removeprefix("http://"))
        await refused_by(connector(policy), engine.url)
        assert engine.requests.count == 1
    assert canary.requests.count == 0


async def test_without_a_policy_anything_goes(canary: MockEngine) -> None:
    async with (
        aiohttp.ClientSession(connector=connector(None)) as session,
        session.get(canary.url + "/health") as answer,
    ):
        assert answer.status == 200
