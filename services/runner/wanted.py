"""What a lease asks of a runtime. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import orjson

from services.kit.spec.block import Block
from services.kit.spec.resolved import Resolved
from services.runner.domain import Lease
from services.runner.runtimes.base import Spec

# An engine waits no longer than this for the next batch of its kind, in seconds.
MOST_KEPT_S = 600


def spec_of(lease: Lease, block: Block, resolved: Resolved, *, now: float) -> Spec:
    template = resolved.template
    return Spec(
        key=lease.batch_id,
        block=block,
        default_endpoints=lease.default_endpoints,
        template=template.spec if template else None,
        template_source=template.source if template else None,
        template_overridden=frozenset((template.overrides or {}).get("engine_args", {})) if template else frozenset(),
        model=block.model or lease.model,
        expire_time=now + lease.deadline_s,
        **_shared(block, resolved),
    )


def has_planner(block: Block) -> bool:
    """Whether somebody follows the batch who can give it another machine."""
    return bool(block.job_id) and isinstance((block.resource_allocation or {}).get("provision_id"), str)


def _shared(block: Block, resolved: Resolved) -> dict[str, Any]:
    """What the planner says about the next batch on the same compute."""
    said, template = block.resource_allocation or {}, resolved.template
    provision_id, seconds = said.get("provision_id"), said.get("keep_engine_seconds")
    if not has_planner(block) or type(seconds) is not int or template is None or seconds <= 0:
        return {}
    alike = [block.target(), provision_id, block.model, block.options(), template.source]
    described = [*alike, template.spec.model_dump(mode="json")]
    kind = sha256(orjson.dumps(described, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return {"kind": kind, "keep_s": float(min(seconds, MOST_KEPT_S))}
