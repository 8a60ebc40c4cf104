"""Compares what providers have with what the store explains: no machine, and no provision, is left without a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from services.planner.domain import Machine, Provision
from services.planner.resource_manager.base import NAME_PREFIX, Provider, ProviderError
from services.planner.service.provision_asking import ask
from services.planner.service.provision_ledger import ID_PREFIX, Ledger
from services.planner.states import ProvisionState

ID_LENGTH = 20
# Machines released at once.
AT_ONCE = 8
# Names in one line of the log.
MOST_SHOWN = 10

IsNeeded = Callable[[str], Awaitable[bool]]
"""Whether a job that has not ended names the provision of this id."""

log = structlog.get_logger(__name__)


class Reconciler:
    def __init__(self, ledger: Ledger, providers: Mapping[str, Provider]) -> None:
        self.ledger = ledger
        self.providers = providers
        self._unneeded: set[str] = set()
        # By provider: names that begin as ours do, and are of other installations.
        self._others: dict[str, set[str]] = {}

    async def reconcile(self) -> None:
        """One look at every provider. A provider that does not answer is looked at the next time."""
        own = ID_PREFIX + await self.ledger.installation()
        async with asyncio.TaskGroup() as group:
            for provider in self.providers.values():
                group.create_task(self._reconcile(provider, own))

    async def _reconcile(self, provider: Provider, own: str) -> None:
        try:
            listed = await ask(provider.name, provider.list())
        except ProviderError as error:
            log.warning(
                "a provider's machines are not known", provider=provider.name, code=error.code, error=error.message
            )
            return
        # The store is read after the provider: a machine in the list was written down before it was made.
        mine = {machine.id: machine for machine in listed if provision_of(machine).startswith(own)}
        self._note_others(provider, {machine.name for machine in listed if machine.id not in mine})
        known = await self.ledger.get_all(sorted({provision_of(machine) for machine in mine.values()}))
        left_over = [
            machine
            for machine in mine.values()
            if not explains(known.get(provision_of(machine)), machine, provider.name)
        ]
        for start in range(0, len(left_over), AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for machine in left_over[start : start + AT_ONCE]:
                    group.create_task(self._release(provider, machine))

    def _note_others(self, provider: Provider, names: set[str]) -> None:
        """Who owns them is not for us to say. After the loss of our database they may have been ours: so a person is told."""
        if names - self._others.get(provider.name, set()):
            shown = sorted(names)[:MOST_SHOWN]
            log.warning("machines of others are left alone", provider=provider.name, count=len(names), names=shown)
        self._others[provider.name] = names

    async def _release(self, provider: Provider, machine: Machine) -> None:
        """Until the provider confirms, it is in the next list, and released again."""
        log.warning(
            "a machine that nothing explains is released", provider=provider.name, machine=machine.name, id=machine.id
        )
        try:
            await ask(provider.name, provider.release(machine))
        except ProviderError as error:
            log.warning("it is not released yet", provider=provider.name, id=machine.id, error=error.message)

    async def release_unneeded(self, is_needed: IsNeeded) -> None:
        """Release the provisions that no live job names, now and at the call before."""
        unneeded = {id for id in await self.ledger.list_unreleased() if not await is_needed(id)}
        for id in sorted(unneeded & self._unneeded):
            log.warning("a provision without a job is released", provision_id=id)
            await self.ledger.request_release(id)
        self._unneeded = unneeded


def provision_of(machine: Machine) -> str:
    """The id of the provision in the machine's name; empty if it is no name of ours."""
    id, dash, number = machine.name.removeprefix(NAME_PREFIX).rpartition("-")
    ours = machine.name.startswith(NAME_PREFIX + ID_PREFIX) and dash and number.isdecimal()
    return id if ours and len(id) == len(ID_PREFIX) + ID_LENGTH else ""


def explains(provision: Provision | None, machine: Machine, provider: str) -> bool:
    """Whether the store says why this machine is there. What is being given back is given back by the worker."""
    if provision is None or provision.status is ProvisionState.RELEASED or provision.provider != provider:
        return False
    if provision.status in (ProvisionState.FAILED, ProvisionState.RELEASING):
        return True
    return any(one.name == machine.name and one.id in ("", machine.id) for one in provision.machines)
