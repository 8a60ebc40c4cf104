"""The resource manager: compute from the intent until the provider confirms that nothing of it is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.transactions import Transactions
from services.planner.domain import Offer, Provision, ProvisionSpec
from services.planner.resource_manager.base import Provider
from services.planner.resource_manager.choice import Match, counted
from services.planner.resource_manager.gpus import matches
from services.planner.resource_manager.registry import close_all, load_providers
from services.planner.service.bells import Bell
from services.planner.service.provision_asking import catalogs
from services.planner.service.provision_checks import check_request, check_spec
from services.planner.service.provision_ledger import Ledger
from services.planner.service.provision_loop import Dispatcher, every
from services.planner.service.provision_reconciler import IsNeeded, Reconciler
from services.planner.service.provision_worker import Worker

LARGEST_PAGE, USUAL_PAGE = 100, 20


class ResourceManager:
    """`is_needed` says whether a live job names a provision; without it, nothing is released for the lack of a job."""

    def __init__(
        self,
        transactions: Transactions,
        settings: Settings,
        providers: Mapping[str, Provider],
        is_needed: IsNeeded | None = None,
        match: Match = matches,
    ) -> None:
        self.settings = settings
        self.providers = providers
        self.is_needed = is_needed
        self.ledger = Ledger(transactions, settings)
        self.worker = Worker(self.ledger, settings, providers, match)
        self.dispatcher = Dispatcher(self.ledger, self.worker.step, settings.planner.poll_s)
        self.reconciler = Reconciler(self.ledger, providers)

    @property
    def changed(self) -> Bell:
        """Rings when a provision changed its status in this process."""
        return self.ledger.changed

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for ever beside the calls below: the worker, the reconciler, and the search for provisions without a job.

        A provision that no live job names is released within `reconcile_s`: it is looked for twice in that time.
        """
        period = self.settings.planner.reconcile_s
        return [
            self.dispatcher.run(),
            every(period, self.reconciler.reconcile),
            every(period / 2, self.release_unneeded),
        ]

    async def provision(self, idempotency_key: str, project_id: str, spec: ProvisionSpec) -> Provision:
        """Write down what is wanted, and return at once. The same key and spec again give the same provision.

        Errors: InvalidArgument (param under `resource_request`), AlreadyExists (the key was used with another spec).
        """
        check_request(idempotency_key, project_id)
        check_spec(spec, self.providers.keys())
        return await self.ledger.create(idempotency_key, project_id, spec)

    async def get(self, id: str) -> Provision:
        """As it is now, with what it has cost until now. Error: NotFound."""
        return await self.ledger.get(id)

    async def release(self, id: str) -> Provision:
        """Start to give it back; done when its status is RELEASED. Repeating it is harmless. Error: NotFound."""
        return await self.ledger.request_release(id)

    async def catalog(self, provider: str = "") -> tuple[list[Offer], dict[str, str]]:
        """What the provider (empty: each that is configured) offers now, and which of them did not answer, with the reason.

        Error: InvalidArgument, if the provider is not configured.
        """
        if provider and provider not in self.providers:
            listed = ", ".join(sorted(self.providers))
            message = f"Invalid value for 'provider': it is not configured here. Configured are: {listed}."
            raise InvalidArgument(message, param="provider", code="invalid_value")
        asked = {provider: self.providers[provider]} if provider else self.providers
        offers, unavailable = await catalogs(asked)
        said = {name: f"{error.code}: {error.message}" for name, error in unavailable.items()}
        return await self._with_what_is_taken(offers), said

    async def _with_what_is_taken(self, offers: list[Offer]) -> list[Offer]:
        ours = [offer for offer in offers if counted(self.providers[offer.provider])]
        full = set()
        for offer, taken in zip(ours, await self.ledger.taken(ours) if ours else [], strict=True):
            own = counted(self.providers[offer.provider])
            if own is not None and taken >= own.capacity(offer):
                full.add(offer)
        shown = [replace(offer, available=offer.available and offer not in full) for offer in offers]
        return sorted(
            shown, key=lambda offer: (offer.provider, offer.hourly_price_usd, offer.instance_type, offer.region)
        )

    def targets(self) -> dict[str, str]:
        """Each configured provider with the value of `aibrix.runtime.target` for batches on its machines."""
        return {name: provider.target for name, provider in self.providers.items()}

    async def work_due(self) -> int:
        """Step every provision that is due now, once; how many there were. `loops` do this for ever."""
        return await self.dispatcher.work_due()

    async def reconcile(self) -> None:
        """Release machines that nothing explains."""
        await self.reconciler.reconcile()

    async def release_unneeded(self) -> None:
        """Release provisions that no live job named, now and at the call before."""
        if self.is_needed is not None:
            await self.reconciler.release_unneeded(self.is_needed)

    async def list(
        self, page_size: int = 0, after: str | None = None, *, live: bool = False
    ) -> tuple[list[Provision], bool]:
        """One page, newest first, and whether there is more. `live`: those that are not RELEASED."""
        if not 0 <= page_size <= LARGEST_PAGE:
            message = f"Invalid 'page_size': expected a value from 1 to {LARGEST_PAGE}."
            raise InvalidArgument(message, param="page_size", code="invalid_value")
        limit = page_size or USUAL_PAGE
        found = await self.ledger.page(after, limit + 1, live=live)
        return found[:limit], len(found) > limit


@asynccontextmanager
async def opened(
    transactions: Transactions, settings: Settings, is_needed: IsNeeded | None = None
) -> AsyncIterator[ResourceManager]:
    """With the providers of PROVISIONER. Error: ValueError naming a provider that does not exist, or a variable that is
    missing."""
    providers = load_providers(settings)
    try:
        yield ResourceManager(transactions, settings, providers, is_needed)
    finally:
        await close_all(providers.values())
