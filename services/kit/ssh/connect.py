"""Connections whose other end is who it should be: nothing is sent before the host key is the expected one.

Nothing of the operator's own SSH set-up has a say: no configuration file, no agent, no list of known hosts, no password.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh

from services.kit.clock import monotonic
from services.kit.ssh.keys import HOST_KEY_ALGORITHMS, HostKey, fingerprint, public_line

FIRST_REST_S = 0.25
LONGEST_REST_S = 5.0
# Signs of life that may be missed in a row.
MISSED = 3
LONGEST_REASON = 200
# Authenticated ciphers that are fast here; all that OpenSSH has spoken since 2014.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)


class SshError(Exception):
    """`why` is for people: of one line, without secrets."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Unreachable(SshError):
    """Nobody answers, or the connection broke: it may be there in a moment."""


class Refused(SshError):
    """The address may not be connected to, or the server speaks nothing that we accept."""


class LoginDenied(SshError):
    """The machine does not accept our key, or not yet: clouds install keys while a machine boots."""


class WrongHostKey(SshError):
    """The machine showed another key than expected. Nothing was sent to it."""


class UnknownHostKey(SshError):
    """No key was expected, and this one was shown. Nothing was sent: connect again with it, if it is to be trusted."""

    def __init__(self, host_key: HostKey) -> None:
        super().__init__(f"the host key {host_key.fingerprint()} is not known yet")
        self.host_key = host_key


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine, and how to tell that it is the right one."""

    host: str
    port: int
    user: str
    host_key: HostKey | None
    """None: learn it; see UnknownHostKey."""
    allows: Callable[[str, str, int], bool]
    """Whether a host that was found to be at this address may be connected to on this port."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    handshake_s: float = 30.0
    """For one attempt, from the first packet until we are logged in."""
    keepalive_s: float = 5.0


class _Client(asyncssh.SSHClient):
    """Judges the host key; asyncssh asks, since it is given no keys to trust."""

    def __init__(self, expected: HostKey | None) -> None:
        self.expected = expected
        self.shown: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return self.expected is not None and self.expected.matches(key)


async def connect(
    target: Target,
    key: asyncssh.SSHKey,
    patience: Patience,
    *,
    until: float,
    again: Callable[[SshError], bool] = lambda error: isinstance(error, Unreachable),
) -> asyncssh.SSHClientConnection:
    """Logged in. Tried until the clock says `until`, at least once, as long as `again` says so. Error: SshError, the last one."""
    rest = FIRST_REST_S
    while True:
        try:
            return await connect_once(target, key, patience)
        except SshError as error:
            # Full jitter: many runners that lost one machine do not come back at the same moment.
            pause = random.uniform(0.1, 1.0) * rest
            if not again(error) or monotonic() + pause >= until:
                raise
        await asyncio.sleep(pause)
        rest = min(LONGEST_REST_S, 2 * rest)


async def connect_once(target: Target, key: asyncssh.SSHKey, patience: Patience) -> asyncssh.SSHClientConnection:
    """Error: SshError."""
    failure: SshError = Unreachable(f"{target.host} has no address")
    give_up_at = monotonic() + patience.handshake_s
    try:
        async with asyncio.timeout(patience.handshake_s):
            addresses = await _addresses(target)
    except TimeoutError as error:
        raise Unreachable(f"the name {target.host} cannot be resolved in {patience.handshake_s:g} s") from error
    for index, address in enumerate(addresses):
        # An address that swallows packets, as IPv6 ones may, leaves time for the next.
        share = (give_up_at - monotonic()) / (len(addresses) - index)
        try:
            async with asyncio.timeout(share):
                return await _connect_to(address, target, key, patience)
        except Unreachable as error:
            failure = error
        except TimeoutError:
            failure = Unreachable(f"{_place(target)} did not complete a login in {patience.handshake_s:g} s")
    raise failure


async def _addresses(target: Target) -> list[str]:
    """Every address of the host; all of them must be allowed, so that a name gains nothing by changing where it leads."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"the name {target.host} cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(target.allows(target.host, address, target.port) for address in addresses):
        raise Refused(
            f"{target.host} is at an address that may not be connected to; the operator may allow it with "
            "AIBRIX_EXTERNAL__ALLOWED_HOSTS"
        )
    return addresses


async def _connect_to(
    address: str, target: Target, key: asyncssh.SSHKey, patience: Patience
) -> asyncssh.SSHClientConnection:
    client = _Client(target.host_key)
    algorithms = target.host_key.algorithms() if target.host_key else HOST_KEY_ALGORITHMS
    try:
        return await asyncssh.connect(
            address,
            target.port,
            username=target.user,
            client_keys=[key],
            client_factory=lambda: client,
            # Nobody is trusted from the start: the client above decides. (Something empty would mean the user's own list.)
            known_hosts=([], [], []),
            server_host_key_algs=list(algorithms),
            encryption_algs=list(CIPHERS),
            compression_algs=None,
            config=[],
            agent_path=None,
            agent_forwarding=False,
            password=None,
            client_host_keys=None,
            preferred_auth="publickey",
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_auth=False,
            gss_kex=False,
            # A server that lets anybody in proves nothing, but costs nothing either to refuse.
            disable_trivial_auth=True,
            connect_timeout=patience.handshake_s,
            login_timeout=patience.handshake_s,
            keepalive_interval=patience.keepalive_s,
            keepalive_count_max=MISSED,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _wrong_key(target, client) from error
    except asyncssh.PermissionDenied as error:
        raise LoginDenied(f"{_place(target)} does not accept the key of {target.user}") from error
    except asyncssh.KeyExchangeFailed as error:
        raise _no_agreement(target, error) from error
    except asyncssh.Error as error:
        raise Unreachable(f"{_place(target)}: {plain(error.reason)}") from error
    except OSError as error:
        raise Unreachable(f"{_place(target)}: {plain(_reason(error))}") from error


def _wrong_key(target: Target, client: _Client) -> SshError:
    if client.shown is None:
        return WrongHostKey(f"{_place(target)} shows a host key that cannot be read")
    if client.expected is None:
        return UnknownHostKey(HostKey(public_line(client.shown)))
    expected, shown = client.expected.fingerprint(), fingerprint(client.shown)
    return WrongHostKey(f"{_place(target)} shows the host key {shown}, but {expected} is expected")


def _no_agreement(target: Target, error: asyncssh.KeyExchangeFailed) -> SshError:
    if target.host_key is not None and "host key" in error.reason.lower():
        expected = target.host_key.fingerprint()
        return WrongHostKey(f"{_place(target)} has no host key of the kind of {expected}, which is expected")
    return Refused(f"{_place(target)} speaks no SSH that we accept: {plain(error.reason)}")


def _place(target: Target) -> str:
    return f"{target.host}:{target.port}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def plain(text: str) -> str:
    """What a machine said, as one short line of printable characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:LONGEST_REASON].strip()


def while_booting(error: SshError) -> bool:
    """For `again`: a machine that boots may refuse our key, or show the image's host key, before it is set up."""
    return isinstance(error, (Unreachable, LoginDenied, WrongHostKey))


def always_allowed(host: str, address: str, port: int) -> bool:
    """For `Target.allows`: a machine that we rented is where its provider says."""
    return True
