"""What the compute of a job has cost. Pure.

A job pays for what was made for it, until its release is confirmed. Another job that is put onto that compute pays from
when its turn comes until it ends, and the one that it was made for pays that much less.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from services.planner.domain import Provision
from services.planner.store.costs import Guest
from services.planner.store.jobs import Held

HOUR = timedelta(hours=1)


def cost_of(held: Held, compute: Sequence[Provision], guests: Sequence[Guest]) -> float:
    """In US dollars, until now. `compute` and `guests` may hold those of other jobs as well."""
    keys = set(held.all_keys())
    total = 0.0
    for provision in compute:
        here = [guest for guest in guests if guest.provision_id == provision.id]
        if provision.idempotency_key in keys:
            total += max(0.0, provision.cost_usd - sum(_share(provision, guest, held.now) for guest in here))
        else:
            total += sum(_share(provision, guest, held.now) for guest in here if guest.job_id == held.job.id)
    return total


def _share(provision: Provision, guest: Guest, now: datetime) -> float:
    until = min(guest.until or now, provision.released_time or now)
    hours = max(timedelta(), until - guest.since) / HOUR
    return provision.hourly_price_usd * provision.replicas * hours
