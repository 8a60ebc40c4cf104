"""One machine as this process reaches it: its connection, its host key, and since when it cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncssh

from services.kit.clock import monotonic
from services.kit.runtime_settings import Ssh
from services.kit.spec.addresses import AddressPolicy, as_address, is_public, unwrapped
from services.kit.ssh.commands import Finished, NoShell, TimedOut, run
from services.kit.ssh.connect import (
    LoginDenied,
    Patience,
    Refused,
    SshError,
    Target,
    Unreachable,
    WrongHostKey,
    connect,
)
from services.kit.ssh.keys import HostKey
from services.runner.runtimes.base import Gone, Handle, Pending

CONNECTING = "connecting"
SSH_PORT = 22
# How long one call goes on trying to connect. Whoever calls asks again.
WINDOW_S = 3.0
# Clouds install a key while a machine boots; one that is refused for longer is the wrong one.
DENIED_S = 60.0


class Machine:
    def __init__(self, handle: Handle, key: asyncssh.SSHKey, settings: Ssh, policy: AddressPolicy) -> None:
        self._key = key
        self._settings = settings
        self._policy = policy
        self._patience = Patience(handshake_s=settings.handshake_timeout_s, keepalive_s=settings.keepalive_s)
        self._connection: asyncssh.SSHClientConnection | None = None
        self._began = monotonic()
        self._reached = bool(handle.get("ready"))
        self._broken_since: float | None = None
        self._denied_since: float | None = None
        self._hung_since: float | None = None
        # A key that the resource manager gave to the machine may appear late; one that was seen already may not change.
        self._may_appear_late = bool(handle.get("host_key_given"))
        self._target = self._target_of(handle)
        self.lost = False

    def learn(self, handle: Handle) -> None:
        """The handle has a host key now."""
        self._target = self._target_of(handle)

    async def connection(self, window_s: float | None = None) -> asyncssh.SSHClientConnection:
        """The one there is, or a new one. Error: SshError."""
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            until = monotonic() + (WINDOW_S if window_s is None else window_s)
            self._connection = await connect(self._target, self._key, self._patience, until=until)
        self._reached, self._denied_since = True, None
        return self._connection

    async def call(
        self,
        script: str,
        arguments: Sequence[str],
        *,
        variables: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> Finished:
        """Error: SshError."""
        connection = await self.connection()
        finished = await run(connection, script, arguments, variables=variables, timeout_s=timeout_s)
        # Not before: a machine that lets us in and then does nothing for us is not reached.
        self._broken_since = self._hung_since = None
        return finished

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def verdict(self, error: SshError) -> Pending | Gone:
        """What it means that a call failed: wait, or give up."""
        if isinstance(error, TimedOut):
            return self._hangs(error)
        if isinstance(error, Unreachable):
            return self._unreachable(error)
        if isinstance(error, WrongHostKey):
            return self._wrong(error)
        if isinstance(error, LoginDenied):
            return self._denied(error)
        assert isinstance(error, Refused | NoShell)
        return Gone(error.why, retryable=isinstance(error, NoShell))

    def _hangs(self, error: SshError) -> Pending | Gone:
        """It lets us in, and then does nothing: its disk, or Docker, has gone."""
        now, limit = monotonic(), self._settings.hang_timeout_s
        self._hung_since = now if self._hung_since is None else self._hung_since
        if now - self._hung_since < limit:
            return Pending(error.why, CONNECTING)
        self.lost = True
        return Gone(f"the machine has hung: for {limit:g} s {error.why}", machine_lost=True)

    def _unreachable(self, error: SshError) -> Pending | Gone:
        now = monotonic()
        if self._reached:
            self._broken_since = now if self._broken_since is None else self._broken_since
            since, limit = self._broken_since, self._settings.lost_after_s
        else:
            since, limit = self._began, self._settings.connect_timeout_s
        if now - since < limit:
            return Pending(error.why, CONNECTING)
        self.lost = True
        return Gone(f"the machine could not be reached for {limit:g} s: {error.why}", machine_lost=True)

    def _wrong(self, error: SshError) -> Pending | Gone:
        waited = monotonic() - self._began
        if self._may_appear_late and not self._reached and waited < self._settings.connect_timeout_s:
            return Pending(error.why, CONNECTING)
        self.lost = True
        return Gone(f"the machine is not the one that it should be: {error.why}", retryable=False, machine_lost=True)

    def _denied(self, error: SshError) -> Pending | Gone:
        now = monotonic()
        self._denied_since = now if self._denied_since is None else self._denied_since
        if now - self._denied_since < min(DENIED_S, self._settings.connect_timeout_s):
            return Pending(error.why, CONNECTING)
        return Gone(f"{error.why}; is its public half on the machine?", retryable=False)

    def _target_of(self, handle: Handle) -> Target:
        text = handle.get("host_key")
        return Target(
            host=handle["host"],
            port=handle["port"],
            user=handle["user"],
            host_key=HostKey.parse(text) if text else None,
            allows=self._allows,
        )

    def _allows(self, host: str, address: str, port: int) -> bool:
        """As for URLs, and SSH's own port besides: what is listed, and what is plainly public."""
        if self._policy.allows_address(host, address, port):
            return True
        found = as_address(address)
        inner = unwrapped(found) if found is not None else None
        return port == SSH_PORT and inner is not None and is_public(inner)
