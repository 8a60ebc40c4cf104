"""An engine on a machine that is reached by SSH: what RunPod and LambdaCloud have in common.

`launch` only decides. The handle, with the host key to expect, is saved before anything is sent to the machine; then each
`probe` does the next step: connect, start what is not started yet, look how it is. A runner that takes over goes the same
way with the saved handle, and finds the engine there.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import asyncssh
import structlog

from services.kit.clock import monotonic
from services.kit.settings import Settings
from services.kit.spec.addresses import AddressPolicy
from services.kit.ssh.commands import Finished, TimedOut
from services.kit.ssh.connect import SshError, UnknownHostKey, WrongHostKey, plain
from services.kit.ssh.forward import Forward
from services.kit.ssh.keys import VARIABLE, read_client_key
from services.runner.runtimes import ssh_scripts as scripts
from services.runner.runtimes.base import Endpoint, Gone, Handle, Pending, Probe, Ready, RuntimeFailed, Spec
from services.runner.runtimes.ssh_health import waiting
from services.runner.runtimes.ssh_logs import cleaned
from services.runner.runtimes.ssh_machine import CONNECTING, Machine
from services.runner.runtimes.ssh_plan import KEY, Plan, plan

LOADING = "loading"
COMMAND_S = 15.0
START_S = 45.0
# A machine that is gone does not hold up the end of its batch: whoever rents it ends it.
RELEASE_WINDOW_S = 10.0
REMEMBERED = 4096
STEPS = ("pulling", "starting")
FIRST_WORD = re.compile(r"\A\S*")

log = structlog.get_logger(__name__)


@dataclass
class Session:
    """What this process holds of one allocation."""

    handle: Handle
    machine: Machine
    sent: bool = True
    """Whether anything may have been started there."""
    launched: bool = False
    """By this process: a handle of an earlier holder may be of a batch that another one has followed on the machine."""
    api_key: str | None = field(default=None, repr=False)
    forward: Forward | None = None
    proven: bool = False
    """The engine on the port knows the API key, so it is ours."""
    silent_since: float | None = None

    def close(self) -> None:
        if self.forward is not None:
            self.forward.close()
        self.machine.close()


class OverSsh:
    """Base of the runtimes; the scripts and their arguments are the difference."""

    target: ClassVar[str]
    user: ClassVar[str]
    start_script: ClassVar[str]
    state_script: ClassVar[str]
    log_script: ClassVar[str]
    stop_script: ClassVar[str]
    left_to_others: ClassVar[Literal[True]] = True

    def __init__(self, settings: Settings) -> None:
        """Error: ValueError, for a key file that cannot be used."""
        self._settings = settings
        self._policy = AddressPolicy.from_setting(settings.external.allowed_hosts)
        self._key = read_client_key(settings.batch_ssh_key_file) if settings.batch_ssh_key_file else None
        self._sessions: dict[str, Session] = {}
        self._released: deque[str] = deque(maxlen=REMEMBERED)

    # What differs

    def start_arguments(self, wanted: Plan, handle: Handle) -> list[str]:
        raise NotImplementedError

    def more_arguments(self, handle: Handle) -> list[str]:
        """Behind those of state_script and log_script."""
        return []

    # The port

    async def launch(self, spec: Spec) -> Handle:
        wanted = self._plan(spec)
        for session in self._sessions.values():
            if session.handle["key"] == key_of(spec) and _is_on(session.handle, wanted):
                return dict(session.handle)
        handle = _new_handle(spec, wanted, self._settings.ssh.engine_port)
        session = self._session(handle)
        session.sent, session.launched = False, True
        return dict(handle)

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        if handle.get("mark") in self._released:
            return Gone("it was released")
        try:
            wanted = self._plan(spec)
        except RuntimeFailed as failure:
            return Gone(failure.why, retryable=False)
        if not _is_on(handle, wanted):
            return Gone("the batch has another machine now")
        session = self._session(handle)
        try:
            return await self._look(session, wanted)
        except UnknownHostKey as unknown:
            return self._trust(session, unknown)
        except SshError as error:
            return session.machine.verdict(error)

    async def release(self, handle: Handle) -> None:
        mark = handle.get("mark")
        if not isinstance(mark, str) or mark in self._released:
            return
        session = self._session(handle)
        try:
            # Without a host key nothing was ever sent there.
            if session.sent and handle.get("host_key"):
                await self._stop(session)
        finally:
            session.close()
            del self._sessions[mark]
        self._released.append(mark)

    async def leave(self, spec: Spec, handle: Handle) -> bool:
        """The next batch finds it there, whichever runner has it; in the end it goes with the machine, which is the planner's."""
        session = self._sessions.get(str(handle.get("mark")))
        if not handle["shared"] or session is None or not session.proven or session.silent_since is not None:
            return False
        session.close()
        del self._sessions[handle["mark"]]
        self._released.append(handle["mark"])
        log.info("engine left for the next batch", key=handle["key"], host=handle["host"])
        return True

    async def list(self) -> list[Handle]:
        """Nothing is here: machines belong to their batches, and are given back by who rents them."""
        return []

    async def close(self) -> None:
        """Engines stay, for the next holder."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    async def explain(self, handle: Handle) -> str:
        """Last lines of the engine's log; empty if it cannot be had."""
        session = self._session(handle)
        if not (session.sent and session.handle.get("host_key")):
            return ""
        try:
            arguments = [handle["key"], str(scripts.TAIL_LINES), str(scripts.TAIL_BYTES), *self.more_arguments(handle)]
            said = await session.machine.call(self.log_script, arguments, timeout_s=COMMAND_S)
        except SshError as error:
            log.warning("the engine's log cannot be read", key=handle["key"], why=error.why)
            return ""
        key, _, text = said.output.partition("\n")
        if len(text.encode()) >= scripts.TAIL_BYTES:  # what is left of a secret would not be known for one
            text = FIRST_WORD.sub("", text)
        return cleaned(text, session.api_key, key.removeprefix("key").strip())

    # How

    def _plan(self, spec: Spec) -> Plan:
        if self._key is None:
            raise RuntimeFailed(
                f"the runner has no SSH key: set {VARIABLE} where it runs to use {self.target}", retryable=False
            )
        return plan(spec, self.target, self.user, self._settings, self._policy)

    def _session(self, handle: Handle) -> Session:
        session = self._sessions.get(handle["mark"])
        if session is None:
            if self._key is None:
                raise RuntimeFailed(f"{VARIABLE} is not set where the runner runs", retryable=False)
            machine = Machine(handle, self._key, self._settings.ssh, self._policy)
            session = self._sessions[handle["mark"]] = Session(dict(handle), machine)
        return session

    def _trust(self, session: Session, unknown: UnknownHostKey) -> Pending:
        """On first use: saved with the lease before it is relied upon, and no other key is accepted from then on."""
        session.handle["host_key"] = unknown.host_key.text
        session.machine.learn(session.handle)
        log.warning(
            "the host key of a machine is trusted since it is the first one seen",
            key=session.handle["key"],
            host=session.handle["host"],
            provision_id=session.handle["provision_id"],
            host_key=unknown.host_key.fingerprint(),
        )
        return Pending("the machine's host key was learned", CONNECTING, handle=dict(session.handle))

    async def _look(self, session: Session, wanted: Plan) -> Probe:
        connection = await session.machine.connection()
        started = session.api_key is not None
        said = await self._ask(session, wanted)
        if isinstance(said, str):
            return await self._unsaid(session, wanted, connection, said)
        if said.status != 0:
            return self._not_started(said)
        state, _, more = said.output.partition("\n")
        if not started:
            session.api_key = more.removeprefix("key").strip() or None
        if state in STEPS:
            return Pending(state, state)
        if state != "running":
            return await self._gone(session, wanted, state)
        return await self._reach(session, wanted, connection)

    async def _unsaid(
        self, session: Session, wanted: Plan, connection: asyncssh.SSHClientConnection, why: str
    ) -> Probe:
        """Nobody on the machine knows how the engine is, which may well be fine: if it was ready, its health tells."""
        if session.handle["ready"]:
            return await self._reach(session, wanted, connection)
        return Pending(f"the machine does not say how the engine is: {why}")

    async def _reach(self, session: Session, wanted: Plan, connection: asyncssh.SSHClientConnection) -> Probe:
        if wanted.http_base_url is None:
            if session.forward is None:
                session.forward = await Forward.open(session.handle["engine_port"])
            session.forward.lead(connection)
        return await self._ready(session, self._endpoint(session, wanted))

    async def _ask(self, session: Session, wanted: Plan) -> Finished | str:
        """Start it, or find it started; after that, only look. A string: the machine cannot say how it is, and why."""
        handle = session.handle
        which = [handle["key"], str(handle["number"]), handle["mark"]]
        if session.api_key is None:
            session.sent = True
            variables = {"key": secrets.token_urlsafe(32), "adopt": "1" if session.launched and handle["adopt"] else ""}
            arguments = [*which, *self.start_arguments(wanted, handle)]
            return await session.machine.call(self.start_script, arguments, variables=variables, timeout_s=START_S)
        sizes = [str(scripts.LOG_BYTES), str(scripts.KEPT_BYTES)]
        arguments = [*which, *sizes, *self.more_arguments(handle)]
        try:
            said = await session.machine.call(self.state_script, arguments, timeout_s=COMMAND_S)
        except TimedOut as error:
            return error.why
        return _why(said) if said.status != 0 else said

    def _not_started(self, said: Finished) -> Probe:
        if said.status == scripts.BUSY:
            return Pending(_why(said))
        return Gone(f"the engine cannot be started: {_why(said)}", retryable=said.status != scripts.HOPELESS)

    def _endpoint(self, session: Session, wanted: Plan) -> Endpoint:
        headers = {"Authorization": f"Bearer {session.api_key}"}
        if wanted.http_base_url is not None:
            return Endpoint(
                base_url=wanted.http_base_url, headers=headers, health_path=wanted.health_path, policy=self._policy
            )
        assert session.forward is not None
        return Endpoint(
            base_url=f"http://127.0.0.1:{session.forward.port}", headers=headers, health_path=wanted.health_path
        )

    async def _ready(self, session: Session, endpoint: Endpoint) -> Probe:
        lacking = await waiting(endpoint, proven=session.proven)
        if lacking is None:
            session.proven, session.silent_since = True, None
            if session.handle["ready"]:
                return Ready((endpoint,))
            session.handle["ready"] = True
            return Ready((endpoint,), handle=dict(session.handle))
        if session.forward is not None and session.forward.forbidden:
            return Gone("the machine's SSH server forwards nothing (its AllowTcpForwarding)", retryable=False)
        if not session.handle["ready"]:
            return Pending(lacking, LOADING)
        now = monotonic()
        session.silent_since = now if session.silent_since is None else session.silent_since
        limit = self._settings.ssh.hang_timeout_s
        if now - session.silent_since < limit:
            return Pending(lacking)
        return self._ended(session, f"the engine hangs: {lacking} for {limit:g} s", await self.explain(session.handle))

    async def _gone(self, session: Session, wanted: Plan, state: str) -> Gone:
        word, _, more = state.partition(" ")
        if word != "exited":
            return Gone("another launch of this batch took the engine's place, or it was stopped")
        code, _, phase = more.partition(" ")
        why = f"the engine ended: it exited with status {code}"
        if phase == "pulling":
            why = f"the image {wanted.image} could not be pulled"
        elif phase == "starting":
            why = f"the container could not be started: status {code}"
        return self._ended(session, why, await self.explain(session.handle))

    def _ended(self, session: Session, why: str, lines: str) -> Gone:
        """An engine that once worked on this machine is started anew once; then it is the machine that is in doubt."""
        again = session.handle["deaths"] > 0
        if again:
            why = f"{why}; it had ended on this machine before"
        return Gone(why + (f"; its last output:\n{lines}" if lines else ""), machine_lost=again)

    async def _stop(self, session: Session) -> None:
        """Error: RuntimeFailed."""
        handle, grace_s = session.handle, self._settings.ssh.stop_grace_s
        arguments = [handle["key"], str(handle["number"]), handle["mark"], str(round(grace_s))]
        try:
            await session.machine.connection(0.0 if session.machine.lost else RELEASE_WINDOW_S)
            said = await session.machine.call(self.stop_script, arguments, timeout_s=grace_s + COMMAND_S)
        except SshError as error:
            again = not session.machine.lost and not isinstance(error, WrongHostKey)
            raise RuntimeFailed(f"the engine cannot be ended: {error.why}", retryable=again) from error
        if said.status != 0:
            raise RuntimeFailed(f"the engine cannot be ended: {plain(said.complaints)}", retryable=True)
        log.info("engine ended", key=handle["key"], host=handle["host"])


def _new_handle(spec: Spec, wanted: Plan, engine_port: int) -> Handle:
    if not KEY.fullmatch(spec.key):
        raise RuntimeFailed("the batch's id cannot be a folder's name", retryable=False)
    before = spec.previous if spec.previous is not None and _is_on(spec.previous, wanted) else {}
    number = int(before.get("number", 0)) + 1
    key = key_of(spec)
    return {
        "key": key,
        "mark": secrets.token_hex(8),
        "number": number,
        # A container that is taken over keeps its name.
        "name": f"aibrix-{key}" if spec.kind else f"aibrix-{key}-{number}",
        "shared": spec.kind is not None,
        # What this batch has started itself, and given up, it does not take over again.
        "adopt": spec.kind is not None and not before,
        "host": wanted.host,
        "port": wanted.port,
        "user": wanted.user,
        "provision_id": wanted.provision_id,
        # A pin of the launch before stays: it is the same machine.
        "host_key": wanted.host_key or before.get("host_key"),
        "host_key_given": wanted.host_key is not None,
        "engine_port": engine_port,
        "ready": False,
        "deaths": int(before.get("deaths", 0)) + bool(before.get("ready")),
    }


def key_of(spec: Spec) -> str:
    """What the engine is called on its machine: batches of one kind use one, one after another."""
    return spec.key if spec.kind is None else f"shared-{spec.kind[:32]}"


def _is_on(handle: Handle, wanted: Plan) -> bool:
    """Whether that allocation is on the machine that the batch has now."""
    names = ("host", "port", "user", "provision_id")
    return all(handle.get(name) == getattr(wanted, name) for name in names)


def _why(said: Finished) -> str:
    return plain(said.complaints or said.output) or f"a command failed with status {said.status}"
