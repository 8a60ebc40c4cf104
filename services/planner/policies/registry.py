"""Which planning policies there are: ours in one table, those of other packages by entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name

from services.kit.settings import Settings
from services.planner.policies.base import Policy

GROUP = "aibrix_batch.policies"
# Value of PLANNING_POLICY to class.
POLICIES = {
    "simple": "services.planner.policies.simple:Simple",
    "deadline": "services.planner.policies.deadline:Deadline",
}


def load_policy(settings: Settings) -> Policy:
    """The one that PLANNING_POLICY names. Only its code is loaded.

    Error: ValueError, if there is none of this name, if there are two, or if it cannot be used: a planner that plans
    otherwise than its operator said would spend money that nobody meant to spend.
    """
    name = settings.planning_policy
    entries = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    origins = [POLICIES[name]] if name in POLICIES else []
    origins += [_origin(entry) for entry in entries]
    if len(origins) > 1:
        raise ValueError(f"two policies are called {name}: {' and '.join(origins)}; uninstall one of them")
    if not origins:
        known = sorted({*POLICIES, *(entry.name for entry in entry_points(group=GROUP))})
        raise ValueError(f"PLANNING_POLICY is {name!r}; there are: {', '.join(known)}")
    if entries:
        return _of_package(entries[0], settings)
    policy: Policy = resolve_name(POLICIES[name])(settings)
    return policy


def _of_package(entry: EntryPoint, settings: Settings) -> Policy:
    try:
        policy: Policy = entry.load()(settings)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the policy {_origin(entry)} cannot be used: {error}") from error
    if not callable(getattr(policy, "plan", None)) or not isinstance(getattr(policy, "shares", None), bool):
        raise ValueError(f"the policy {_origin(entry)} lacks plan or shares: see services/planner/policies/base.py")
    return policy


def _origin(entry: EntryPoint) -> str:
    """Where its code is, and which package brought it."""
    return f"{entry.value} of the package {entry.dist.name}" if entry.dist else entry.value
