"""Which addresses a URL that a user gave may lead to. Pure: it parses and judges, it resolves and connects to nothing.

URLs are read by one grammar that is narrower than every parser's, and put together again from its parts: what is left
is read alike by all of them. A name says nothing about where it leads: whoever connects asks `allows_address` about
each address that the name resolves to, at every connect (services/runner/runtimes/addresses.py).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from services.kit.errors import InvalidArgument

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PORTS = {"http": 80, "https": 443}
URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[\w.~!$&'()*+,;=:@-]+)*)/?",
    re.ASCII | re.IGNORECASE,
)
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
# The last label of something that a resolver may take for a number: 127.1, 0x7f000001, 2852039166.
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
# Names that lead into a private network by convention. Others are judged by what they resolve to.
PRIVATE_SUFFIXES = frozenset(
    {"localhost", "local", "localdomain", "internal", "intranet", "lan", "corp", "home", "arpa"}
)

# `is_global` alone is not enough: on some versions it is true for tunnels to private addresses and for multicast.
DENIED_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
# In IPv6 only global unicast is public, and not all of it.
GLOBAL_V6 = IPv6Network("2000::/3")
DENIED_V6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
TRANSLATED = IPv6Network("64:ff9b::/96")
COMPATIBLE = IPv6Network("::/96")


@dataclass(frozen=True)
class Url:
    """A base URL in its plain form: lower case, no default port, no `/v1`."""

    scheme: str
    host: str
    """A name, or an address without brackets."""
    port: int
    path: str

    def origin(self) -> str:
        """Scheme, host and port: what a credential is bound to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return self.origin() + self.path


@dataclass(frozen=True)
class Rule:
    """One entry of the setting: a name or a network, on one port or on all."""

    host: str | None = None
    network: Network | None = None
    port: int | None = None


@dataclass(frozen=True)
class AddressPolicy:
    anything: bool = False
    rules: tuple[Rule, ...] = ()

    @classmethod
    def from_setting(cls, text: str) -> Self:
        """Comma-separated names, `name:port`, addresses, CIDRs; `*` for anything. Error: ValueError."""
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        return cls(anything="*" in entries, rules=tuple(_rule(entry) for entry in entries if entry != "*"))

    def check_url(self, url: str, *, param: str = "base_url") -> str:
        """The URL in its plain form. Error: InvalidArgument with `param`, if no connection to it may be made."""
        parsed = parse_url(url, param=param)
        if not self.allows_host(parsed.host, parsed.port):
            raise InvalidArgument(
                f"Invalid value for '{param}': {parsed.host} on port {parsed.port} is not a public address. "
                "The operator may allow it with AIBRIX_EXTERNAL__ALLOWED_HOSTS.",
                param=param,
                code="invalid_value",
            )
        return str(parsed)

    def allows_host(self, host: str, port: int) -> bool:
        """Whether `host` may be tried: an address is judged at once, a name only by its form."""
        address = as_address(host)
        if address is not None:
            return self.allows_address(host, address, port)
        if self._names(host, port):
            return True
        return "." in host and host.rsplit(".", 1)[1] not in PRIVATE_SUFFIXES and _public_port(port)

    def allows_address(self, host: str, address: str | Address, port: int) -> bool:
        """Whether `host`, now known to be at `address`, may be connected to."""
        if self._names(host, port):
            return True
        found = address if isinstance(address, Address) else as_address(address)
        if found is None:
            return False
        inner = unwrapped(found)
        for rule in self.rules:
            if rule.network is not None and rule.port in (None, port) and _holds(rule.network, found, inner):
                return True
        return inner is not None and is_public(inner) and _public_port(port)

    def _names(self, host: str, port: int) -> bool:
        """A listed name may be anywhere: who listed it knows where it leads."""
        name = host.lower().rstrip(".")
        return self.anything or any(rule.host == name and rule.port in (None, port) for rule in self.rules)


def parse_url(url: str, *, param: str = "base_url") -> Url:
    """Error: InvalidArgument with `param`. It does not repeat the URL, which may hold a password."""
    match = URL.fullmatch(url) if len(url) <= 2048 else None
    if match is None:
        raise _invalid(param, "it must be an http or https URL of plain characters: host, perhaps port and path")
    scheme = match["scheme"].lower()
    host = _host(match["host"].lower())
    if host is None:
        raise _invalid(param, "its host is neither a DNS name nor an address in its usual form")
    port = int(match["port"] or PORTS[scheme])
    if not 0 < port < 65_536:
        raise _invalid(param, "its port is out of range")
    if {".", ".."} & set(match["path"].split("/")):
        raise _invalid(param, "its path has a '.' or '..' segment")
    return Url(scheme, host, port, match["path"].removesuffix("/v1"))


def as_address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def unwrapped(address: Address) -> Address | None:
    """The address that packets reach in the end: the IPv4 one inside of mapped, compatible, 6to4 and NAT64 forms.

    None for Teredo, which goes through a server that the address itself names.
    """
    if isinstance(address, IPv4Address):
        return address
    if address.teredo is not None:
        return None
    if address in TRANSLATED or (address in COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_public(address: Address) -> bool:
    """Plainly public: routed on the internet, and nobody's inner service."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in DENIED_V4)
    return address in GLOBAL_V6 and not any(address in network for network in DENIED_V6)


def _public_port(port: int) -> bool:
    """No mail or other old service is spoken HTTP to: of the system ports only the web's."""
    return port >= 1024 or port in PORTS.values()


def _holds(network: Network, *addresses: Address | None) -> bool:
    return any(address is not None and address in network for address in addresses)


def _host(text: str) -> str | None:
    """The host in its plain form, or None if resolvers may disagree about it."""
    if text.startswith("["):
        address = as_address(text[1:-1])
        return str(address) if isinstance(address, IPv6Address) else None
    labels = text.split(".")
    if NUMBER.fullmatch(labels[-1]):
        return text if isinstance(as_address(text), IPv4Address) else None
    return text if all(LABEL.fullmatch(label) for label in labels) else None


def _rule(entry: str) -> Rule:
    try:
        return Rule(network=ipaddress.ip_network(entry))
    except ValueError:
        # not a network: a name, or either with a port
        match = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::([0-9]{1,5}))?", entry, re.ASCII)
    host = _host(match[1].lower()) if match else None
    if match is None or host is None:
        raise ValueError(f"AIBRIX_EXTERNAL__ALLOWED_HOSTS: {entry!r} is no host, host:port or CIDR")
    port = int(match[2]) if match[2] else None
    address = as_address(host)
    return Rule(network=ipaddress.ip_network(address), port=port) if address else Rule(host=host, port=port)


def _invalid(param: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")
