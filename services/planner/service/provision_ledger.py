"""What is written about provisions: one transaction a method. It asks no provider."""

from __future__ import annotations

import secrets
import string
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

from services.kit.errors import AlreadyExists, NotFound, ServiceError
from services.kit.ids import new_id
from services.kit.settings import Settings
from services.kit.together import Together
from services.kit.transactions import Row, Transactions, Tx
from services.planner.domain import Machine, Offer, Provision, ProvisionSpec
from services.planner.resource_manager.base import NAME_PREFIX, ProviderError
from services.planner.resource_manager.choice import Refusal, Search, Work, group_of
from services.planner.service.bells import Bell
from services.planner.states import ProvisionEvent, ProvisionState
from services.planner.store import provisions
from services.planner.store.tables import provisions as t

ID_PREFIX = "prov-"
# An id is the prefix, the installation's characters, and random ones: 20 together.
OWN_LENGTH, RANDOM_LENGTH = 6, 14
# Writes that share a transaction: each commit waits for the disk.
MOST_TOGETHER = 32
ALPHABET = string.ascii_lowercase + string.digits


def random_name(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


T = TypeVar("T")
Write = Callable[[Tx], Awaitable[Any]]


async def _outcome(work: Write, tx: Tx) -> Any:
    try:
        return await work(tx)
    except (ServiceError, ProviderError) as error:
        return error


class Ledger:
    def __init__(self, transactions: Transactions, settings: Settings) -> None:
        self.transactions = transactions
        self.due = Bell()
        """A provision has something to be done."""
        self.changed = Bell()
        """A provision changed its status."""
        self.ttl = timedelta(seconds=settings.planner.lease_ttl_s)
        self.owner = new_id("provisioner:")
        self._installation = ""
        self._together: Together[Write, Any] = Together(self._write_all, MOST_TOGETHER)

    async def installation(self) -> str:
        """What the ids of this installation's provisions begin with, behind ID_PREFIX."""
        if not self._installation:
            new = random_name(OWN_LENGTH)

            async def work(tx: Tx) -> str:
                return await provisions.installation_id(tx, new)

            self._installation = await self.transactions.write(work)
        return self._installation

    async def create(self, key: str, project_id: str, spec: ProvisionSpec) -> Provision:
        """The provision of this key. Error: AlreadyExists, if it was used with another spec or by another project."""
        group = group_of(spec)
        id = ID_PREFIX + await self.installation() + random_name(RANDOM_LENGTH)

        async def work(tx: Tx) -> tuple[Provision, bool]:
            new = Provision(
                id=id,
                idempotency_key=key,
                project_id=project_id,
                status=ProvisionState.PENDING,
                gpus_per_replica=group.gpus_per_replica,
                replicas=group.replicas,
                create_time=tx.now,
                revision=1,
            )
            if await provisions.insert(tx, new, spec):
                return new, True
            earlier = await provisions.find_by_key(tx, key)
            assert earlier is not None  # provisions are never deleted
            provision, wanted = earlier
            if (provision.project_id, wanted) != (project_id, provisions.spec_json(spec)):
                raise AlreadyExists(
                    "The idempotency key was used with another request.", param="idempotency_key", resource="provision"
                )
            return provision, False

        provision, is_new = await self._write(work)
        if is_new:
            self.due.ring()
        return provision

    async def get(self, id: str) -> Provision:
        async def work(tx: Tx) -> Provision | None:
            return await provisions.find(tx, id)

        return found(await self.transactions.read(work), id)

    async def get_all(self, ids: Sequence[str]) -> dict[str, Provision]:
        async def work(tx: Tx) -> dict[str, Provision]:
            return await provisions.find_all(tx, ids)

        return await self.transactions.read(work)

    async def page(self, after: str | None, limit: int, *, live: bool) -> list[Provision]:
        async def work(tx: Tx) -> list[Provision]:
            return await provisions.page(tx, after, limit, live=live)

        return await self.transactions.read(work)

    async def list_unreleased(self) -> list[str]:
        return await self.transactions.read(provisions.list_unreleased)

    async def taken(self, offers: Sequence[Offer]) -> list[int]:
        """How many units of each offer are taken."""

        async def work(tx: Tx) -> list[int]:
            return [await provisions.taken(tx, offer) for offer in offers]

        return await self.transactions.read(work)

    async def request_release(self, id: str) -> Provision:
        """Nothing new happens for this provision from here on; what exists of it is given back."""

        async def work(tx: Tx) -> Provision | None:
            values = {"release_requested": True, "due_time": tx.now}
            await provisions.move(tx, ProvisionEvent.RELEASE, t.c.id == id, **values)
            return await provisions.find(tx, id)

        provision = found(await self._write(work), id)
        self._ring()
        return provision

    async def lease_due(self, limit: int) -> list[Work]:
        """Take what somebody should act on."""
        if not await self.transactions.read(provisions.is_due):  # idle planners take no lock
            return []

        async def work(tx: Tx) -> list[Work]:
            return await provisions.lease_due(tx, self.owner, self.ttl, limit)

        return await self.transactions.write(work)

    async def renew(self, work: Work) -> bool:
        """Keep it a while longer; False if somebody else has it."""

        async def write(tx: Tx) -> bool:
            until = tx.now + self.ttl
            return await provisions.set_held(tx, work.provision.id, work.token, lease_expire_time=until) is not None

        return await self._write(write)

    async def reserve(self, work: Work, offer: Offer, capacity: int | None) -> Work | None:
        """Write down which machine is asked for, before it is asked for; None if that is not wanted any more.

        `capacity`: how many units of the offer there are, where our rows are what takes them. Error: ProviderError
        NoCapacity.
        """
        number = work.search.named
        name = f"{NAME_PREFIX}{work.provision.id}-{number}"
        search = replace(work.search, offer=offer, asked=True, missing_since=None, named=number + 1)

        async def write(tx: Tx) -> Row | None:
            if capacity is not None:
                await self._check_capacity(tx, work, offer, capacity)
            values = {
                "provider": offer.provider,
                "region": offer.region,
                "instance_type": offer.instance_type,
                "accelerator": offer.accelerator,
                "gpus_per_replica": offer.gpus,
                "hourly_price_usd": offer.hourly_price_usd,
                "machines": [asdict(Machine(name=name))],
                "tried": provisions.search_json(search),
                "billed_from_time": tx.now,
                "revision": t.c.revision + 1,
            }
            pending = t.c.status == ProvisionState.PENDING
            return await provisions.set_held(tx, work.provision.id, work.token, pending, **values)

        row = await self._write(write)
        return None if row is None else provisions.as_work(row, work.now)

    async def _check_capacity(self, tx: Tx, work: Work, offer: Offer, capacity: int) -> None:
        await provisions.lock_capacity(tx, offer)
        units = max(1, offer.gpus) * work.provision.replicas
        if await provisions.taken(tx, offer, besides=work.provision.id) + units > capacity:
            message = f"{offer.instance_type}: all {capacity} are taken"
            raise ProviderError("NoCapacity", message, retryable=True)

    async def save(self, work: Work, *events: ProvisionEvent, rest: float | None = None, **values: Any) -> Work | None:
        """Write what the holder found out; None if it is not the holder any more.

        `events` that its status does not allow by now (somebody asked for its release) are left out. With `rest` the
        lease ends, and the provision is due again in so many seconds; at once if its status is another than expected.
        """
        id, now_wanted = work.provision.id, work.provision.status

        async def write(tx: Tx) -> Row | None:
            row: Row | None = None
            for event in events:
                row = await provisions.move(tx, event, provisions.held(id, work.token)) or row
            written = values | {"revision": t.c.revision + 1} if "machines" in values else dict(values)
            if rest is not None:
                expected = now_wanted if row is None else row["status"]
                due = provisions.due_in(tx, rest, expected)
                written |= {"lease_owner": None, "lease_expire_time": None, "due_time": due}
            return await provisions.set_held(tx, id, work.token, **written) if written else row

        row = await self._write(write)
        if row is not None and row["status"] != work.provision.status:
            self._ring()
        return None if row is None else provisions.as_work(row, work.now)

    async def confirm(self, work: Work, machines: Sequence[Machine]) -> bool:
        """Nothing of it is left, and nothing of it costs any more."""

        async def write(tx: Tx) -> Row | None:
            mine = provisions.held(work.provision.id, work.token)
            now = await provisions.find(tx, work.provision.id)
            assert now is not None
            values = {
                "machines": [asdict(machine) for machine in machines],
                "tried": provisions.search_json(Search(named=work.search.named)),
                "past_cost_usd": now.cost_usd,
                "billed_from_time": None,
                "lease_owner": None,
                "lease_expire_time": None,
                "due_time": None,
            }
            return await provisions.move(tx, ProvisionEvent.CONFIRM, mine, **values)

        done = await self._write(write) is not None
        if done:
            self._ring()
        return done

    async def fail(self, work: Work, why: Refusal, **values: Any) -> None:
        """End the search, or the life, of a provision: what exists of it is given back next."""
        said = {"error_code": why.code, "error_message": why.message[:2000], "retryable": why.retryable}
        await self.save(work, ProvisionEvent.FAIL, rest=0, **said, **values)

    async def _write(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Run `work` in a transaction, together with others that come meanwhile. It raises before it writes, or not at all."""
        return cast(T, await self._together(work))

    async def _write_all(self, works: Sequence[Write]) -> Sequence[Any]:
        async def work(tx: Tx) -> list[Any]:
            return [await _outcome(one, tx) for one in works]

        return await self.transactions.write(work)

    def _ring(self) -> None:
        self.changed.ring()
        self.due.ring()


def found(provision: Provision | None, id: str) -> Provision:
    if provision is None:
        shown = id[:128]
        raise NotFound(f"No provision found with id '{shown}'.", resource="provision", id=shown, param="id")
    return provision
