"""Drives a provision one step further: from the intent to running machines, and back to nothing.

Every step can be repeated, and taken over by another planner: what is about to be done is written before it is done, and
a step that finds that something may have been done already looks first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import structlog

from services.kit.settings import Settings
from services.kit.spec.ssh import SSH_TARGETS
from services.planner.domain import Machine, Offer
from services.planner.resource_manager.base import (
    NAME_PREFIX,
    Gone,
    Order,
    Pending,
    Probe,
    Provider,
    ProviderError,
    Ready,
)
from services.planner.resource_manager.choice import Choice, Match, Refusal, Search, Work, counted, summary
from services.planner.service.provision_asking import LAUNCH_S, ask, catalogs
from services.planner.service.provision_ledger import Ledger
from services.planner.states import ProvisionEvent, ProvisionState
from services.planner.store.provisions import search_json

# A machine that may have been made is looked for this long, in seconds, before it counts as not made.
SETTLE_S = 60.0
# How often a running machine is looked at, in seconds.
WATCH_S = 30.0
# A running machine that cannot be reached for so long is given up.
UNREACHABLE = timedelta(minutes=10)
# Longest time between two looks at a machine in the making, and between two tries of a call that fails.
SLOWEST_LOOK_S = 10.0
SLOWEST_RETRY_S = 300.0
# A call that fails for a reason that passes is tried so often before the offer counts as refused.
MOST_FAILURES = 5
# Codes after which another offer of the same provider will not do either.
OF_THE_ACCOUNT = frozenset({"QuotaExceeded", "InvalidCredential"})

log = structlog.get_logger(__name__)


class Worker:
    def __init__(self, ledger: Ledger, settings: Settings, providers: Mapping[str, Provider], match: Match) -> None:
        self.ledger = ledger
        self.providers = providers
        self.match = match
        self.poll_s = settings.planner.poll_s
        self.timeout = timedelta(seconds=settings.planner.provision_timeout_s)

    async def step(self, work: Work) -> None:
        """Do what is to be done next for a provision that is leased to us. Error: Unavailable; then it is due again when
        the lease has ended."""
        steps: dict[ProvisionState, Callable[[Work], Any]] = {
            ProvisionState.PENDING: self._seek,
            ProvisionState.PROVISIONING: self._look,
            ProvisionState.RUNNING: self._watch,
            ProvisionState.FAILED: self._give_back,
            ProvisionState.RELEASING: self._give_back,
        }
        await steps[work.provision.status](work)

    # PENDING: find somebody who has it.

    async def _seek(self, work: Work) -> None:
        if work.now >= work.provision.create_time + self.timeout:
            seen = summary(work.search.refused).message if work.search.refused else "no provider answered"
            # Where no machine can have been made, none was used up.
            code = "Timeout" if work.search.asked else "ProviderUnavailable"
            await self.ledger.fail(work, replace(timed_out(seen), code=code))
            return
        left: Work | None = work
        if work.search.asked:
            left = await self._settle(work)
        while left is not None:
            left = await self._try_next(left)

    async def _try_next(self, work: Work) -> Work | None:
        """Ask for the best offer that is left. The search to go on with, if it was refused."""
        offers, unavailable = await catalogs(self._asked(work))
        silent = [refusal_of(error, name) for name, error in unavailable.items()]
        chosen = Choice(work.spec, self.providers, self.match).choose(offers, [*work.search.refused, *silent])
        if isinstance(chosen, Refusal):
            await self._give_up(work, chosen, silent)
            return None
        own = counted(self.providers[chosen.provider])
        try:
            reserved = await self.ledger.reserve(work, chosen, own.capacity(chosen) if own else None)
        except ProviderError as error:
            return _refused(work, chosen, error)
        if reserved is None:  # its release was asked for, or the lease is lost
            await self.ledger.save(work, rest=0)
            return None
        return await self._launch(reserved)

    def _asked(self, work: Work) -> dict[str, Provider]:
        """The configured providers that this provision may use, without those that refused it altogether."""
        names = work.spec.providers or self.providers
        dropped = {no.provider for no in work.search.refused if no.instance_type is None}
        return {name: one for name, one in self.providers.items() if name in names and name not in dropped}

    async def _launch(self, work: Work) -> Work | None:
        """Ask for the machine that is written down. The search to go on with, if it was refused."""
        offer, machine = work.search.offer, work.provision.machines[0]
        assert offer is not None
        labels = tuple(sorted(work.spec.labels.items()))
        order = Order(name=machine.name, offer=offer, image=work.spec.image, labels=labels)
        provider = self.providers[offer.provider]
        try:
            made = await ask(offer.provider, provider.launch(order), LAUNCH_S)
        except ProviderError as error:
            return await self._not_made(work, offer, error)
        if not made.id:
            await self.ledger.save(work, rest=self.poll_s)  # it says nothing that we could find it by: its list may
            return None
        await self._made(work, provider, made)
        return None

    async def _not_made(self, work: Work, offer: Offer, error: ProviderError) -> Work | None:
        failed = {"provision_id": work.provision.id, "provider": offer.provider, "code": error.code}
        log.warning("a launch failed", **failed, ambiguous=error.ambiguous, error=error.message)
        if error.ambiguous:
            await self.ledger.save(work, rest=self.poll_s)
            return None
        # Nothing was made: the name is never used again.
        search = replace(work.search, asked=False)
        passes = error.code == "ProviderUnavailable" and error.retryable
        if passes and search.failures + 1 < MOST_FAILURES:
            search = replace(search, failures=search.failures + 1)
            await self._save_search(
                work, search, rest=self._backoff(search.failures), billed_from_time=None, machines=[]
            )
            return None
        return _refused(replace(work, search=search), offer, error)

    async def _made(self, work: Work, provider: Provider, made: Machine) -> None:
        """Remember which machine it is: from here on it is found by its id."""
        machine = replace(made, name=work.provision.machines[0].name)
        events, rest = [ProvisionEvent.START], self.poll_s
        if counted(provider) is not None:  # it is there: no need to come again for it
            now = await self._probe(provider, machine)
            if isinstance(now, Ready):
                machine, rest = now.machine, WATCH_S
                events.append(ProvisionEvent.RUN)
        search = replace(work.search, asked=False, missing_since=None, failures=0)
        log.info(
            "machine made",
            provision_id=work.provision.id,
            machine=machine.name,
            id=machine.id,
            provider=work.provision.provider,
            instance_type=work.provision.instance_type,
            hourly_price_usd=work.provision.hourly_price_usd,
        )
        await self._save_search(work, search, *events, rest=rest, machines=[asdict(machine)])

    async def _settle(self, work: Work) -> Work | None:
        """A machine may have been made, and nobody noted it. The search to go on with, if there is none."""
        provider = self._provider(work)
        if provider is None:
            await self._wait_for_provider(work)
            return None
        if counted(provider) is not None:
            return await self._launch(work)
        name = work.provision.machines[0].name
        try:
            listed = await ask(work.provision.provider, provider.list())
        except ProviderError as error:
            await self._later(work, error)
            return None
        if mine := [machine for machine in listed if machine.name == name and machine.id]:
            # Of several with this name, the reconciler releases those that the row does not name.
            await self._made(work, provider, min(mine, key=lambda machine: machine.id))
            return None
        since = work.search.missing_since or work.now
        if work.now < since + timedelta(seconds=SETTLE_S):
            await self._save_search(work, replace(work.search, missing_since=since), rest=self.poll_s)
            return None
        return self._never_made(work)

    def _never_made(self, work: Work) -> Work:
        log.info("a machine was not made", provision_id=work.provision.id, machine=work.provision.machines[0].name)
        search = replace(work.search, asked=False, missing_since=None, failures=work.search.failures + 1)
        work = replace(work, search=search)
        if search.failures < MOST_FAILURES or search.offer is None:
            return work
        error = ProviderError("ProviderUnavailable", "machines that were asked for did not appear", retryable=True)
        return _refused(work, search.offer, error)

    async def _give_up(self, work: Work, why: Refusal, silent: Sequence[Refusal]) -> None:
        """Nothing is left to ask for. Providers that could not be asked may have it: wait for them."""
        values: dict[str, Any] = {"billed_from_time": None, "machines": []}
        if any(one.retryable for one in silent):
            search = replace(work.search, failures=work.search.failures + 1)
            await self._save_search(work, search, rest=self._backoff(search.failures), **values)
            return
        log.info("no compute", provision_id=work.provision.id, code=why.code, error=why.message)
        await self.ledger.fail(work, why, tried=search_json(work.search), **values)

    # PROVISIONING and RUNNING: look at the machine.

    async def _look(self, work: Work) -> None:
        assert work.provisioning_time is not None
        waited = work.now - work.provisioning_time
        now = await self._probe_leased(work)
        if isinstance(now, Ready):
            log.info("machine runs", provision_id=work.provision.id, machine=now.machine.name)
            machines = [asdict(now.machine)]
            await self._save_search(
                work, replace(work.search, failures=0), ProvisionEvent.RUN, rest=WATCH_S, machines=machines
            )
        elif isinstance(now, Gone):
            await self.ledger.fail(work, Refusal(code=now.code, message=now.why, retryable=True))
        elif now is not None and waited >= self.timeout:
            await self.ledger.fail(work, timed_out(now.detail))
        elif now is not None:
            rest = min(max(waited.total_seconds() / 10, self.poll_s), max(SLOWEST_LOOK_S, self.poll_s))
            await self._keep_machine(work, now.machine, rest)

    async def _watch(self, work: Work) -> None:
        now = await self._probe_leased(work)
        if isinstance(now, Pending):
            since = work.search.missing_since or work.now
            if work.now < since + UNREACHABLE:
                await self._save_search(work, replace(work.search, missing_since=since), rest=WATCH_S)
                return
            now = Gone("Unhealthy", f"not reached for {UNREACHABLE.total_seconds():g} s: {now.detail}")
        if isinstance(now, Gone):
            log.warning("machine lost", provision_id=work.provision.id, code=now.code, error=now.why)
            await self.ledger.fail(work, Refusal(code=now.code, message=now.why, retryable=True))
        elif now is not None:
            await self._keep_machine(work, now.machine, WATCH_S)

    async def _keep_machine(self, work: Work, machine: Machine, rest: float) -> None:
        values = {} if machine == work.provision.machines[0] else {"machines": [asdict(machine)]}
        await self._save_search(work, replace(work.search, failures=0, missing_since=None), rest=rest, **values)

    async def _probe_leased(self, work: Work) -> Probe | None:
        """How the machine is; None if nobody knows, and the lease has ended."""
        provider = self._provider(work)
        if provider is None:
            await self._wait_for_provider(work)
            return None
        try:
            return await self._probe(provider, work.provision.machines[0])
        except ProviderError as error:
            started = work.provisioning_time
            late = started is not None and work.now >= started + self.timeout
            if work.provision.status == ProvisionState.PROVISIONING and late:
                return Pending(error.message, work.provision.machines[0])
            await self._later(work, error)
            return None

    async def _probe(self, provider: Provider, machine: Machine) -> Probe:
        now = await ask(provider.name, provider.probe(machine))
        if isinstance(now, Gone):
            return now
        # Whatever it answers, this is the machine that we asked about, and a host key that was known is not forgotten.
        host_key = now.machine.host_key or machine.host_key
        seen = replace(now.machine, id=machine.id, name=machine.name, host_key=host_key)
        if isinstance(now, Ready) and provider.target in SSH_TARGETS and not seen.host:
            return Pending("it is said to run, and has no address", seen)
        return replace(now, machine=seen)

    # FAILED and RELEASING: give back what exists.

    async def _give_back(self, work: Work) -> None:
        machines = work.provision.machines
        if not machines:
            await self.ledger.confirm(work, [])
            return
        provider = self._provider(work)
        if provider is None:
            await self._wait_for_provider(work)
            return
        try:
            left = await self._release_all(work, provider)
        except ProviderError as error:
            await self._later(work, error)
            return
        if left:
            search = replace(work.search, failures=work.search.failures + 1)
            await self._save_search(work, search, rest=self._backoff(search.failures))
            return
        if work.search.asked and counted(provider) is None and not await self._is_settled(work):
            return
        if await self.ledger.confirm(work, [replace(machine, state="released") for machine in machines]):
            log.info("provision released", provision_id=work.provision.id, provider=provider.name)

    async def _release_all(self, work: Work, provider: Provider) -> bool:
        """Release what the row names and what the provider lists of it; whether something may be left."""
        prefix = f"{NAME_PREFIX}{work.provision.id}-"

        async def listed() -> dict[str, Machine]:
            found = await ask(provider.name, provider.list())
            return {machine.id: machine for machine in found if machine.name.startswith(prefix)}

        known = {machine.id: machine for machine in work.provision.machines if machine.id}
        confirmed = [await ask(provider.name, provider.release(one)) for one in ((await listed()) | known).values()]
        return not all(confirmed) or bool(await listed())

    async def _is_settled(self, work: Work) -> bool:
        """Whether a machine that may have been made would be in the list by now."""
        since = work.search.missing_since or work.now
        if work.now >= since + timedelta(seconds=SETTLE_S):
            return True
        await self._save_search(work, replace(work.search, missing_since=since), rest=self.poll_s)
        return False

    # What the steps share.

    def _provider(self, work: Work) -> Provider | None:
        return self.providers.get(work.provision.provider)

    async def _wait_for_provider(self, work: Work) -> None:
        name = work.provision.provider
        log.error(
            "its provider is not configured: PROVISIONER must name it", provision_id=work.provision.id, provider=name
        )
        await self.ledger.save(work, rest=SLOWEST_RETRY_S)

    async def _later(self, work: Work, error: ProviderError) -> None:
        """A call failed: try again, less and less often."""
        search = replace(work.search, failures=work.search.failures + 1)
        rest = self._backoff(search.failures)
        log.warning(
            "a provider does not do what is asked, trying again",
            provision_id=work.provision.id,
            status=work.provision.status,
            provider=work.provision.provider,
            code=error.code,
            error=error.message,
            failures=search.failures,
            retry_after_s=rest,
        )
        await self._save_search(work, search, rest=rest)

    def _backoff(self, failures: int) -> float:
        return min(self.poll_s * 2.0 ** min(failures, 20), SLOWEST_RETRY_S)

    async def _save_search(
        self, work: Work, search: Search, *events: ProvisionEvent, rest: float, **values: Any
    ) -> None:
        if search != work.search:
            values["tried"] = search_json(search)
        await self.ledger.save(work, *events, rest=rest, **values)


def timed_out(last: str) -> Refusal:
    return Refusal(code="Timeout", message=f"it did not run in time: {last}", retryable=True)


def refusal_of(error: ProviderError, provider: str, offer: Offer | None = None) -> Refusal:
    """Of one offer, or (None) of all that the provider has."""
    return Refusal(
        provider=provider,
        region=offer.region if offer else "",
        instance_type=offer.instance_type if offer else None,
        code=error.code,
        message=error.message,
        retryable=error.retryable,
    )


def _refused(work: Work, offer: Offer, error: ProviderError) -> Work:
    """The search without this offer, or without its provider, if what it says is no different for its other offers."""
    of_all = error.code in OF_THE_ACCOUNT or (error.code == "InvalidRequest" and not error.retryable)
    refused = (*work.search.refused, refusal_of(error, offer.provider, None if of_all else offer))
    return replace(work, search=replace(work.search, refused=refused, asked=False, failures=0))
