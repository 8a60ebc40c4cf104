"""The lifecycles of a job and of a provision.

A state is written by one statement, `UPDATE ... WHERE state IN sources RETURNING` (store/), which also sets the time the
state was entered and adds a line to the job's timeline.
"""

from __future__ import annotations

from enum import StrEnum, auto

from services.kit.states import Machine, NamedState


class JobState(NamedState):
    QUEUED = auto()
    """Waits for the policy. The input file is validated before anything else: nothing is spent on a wrong one. A job for
    which there was no compute is back here, and rests a while."""
    PLANNED = auto()
    """The policy chose it, and its provision is written down. If the planner dies, another asks for the same provision."""
    RESOURCE_PREPARING = auto()
    """The resource manager makes its machines. Taken over by looking at the same provision."""
    SUBMITTING = auto()
    """The batch is created under the job's id as idempotency key: repeating it gives the same batch."""
    VALIDATING = auto()
    """The batch's own state, as the next three."""
    IN_PROGRESS = auto()
    FINALIZING = auto()
    CANCELLING = auto()
    """Somebody asked for the end. The batch is cancelled first, then the compute goes; taken over likewise."""
    COMPLETED = auto()
    """Terminal. Its provision is released by the resource manager, which tries until the provider confirms."""
    FAILED = auto()
    """Terminal, as COMPLETED."""
    EXPIRED = auto()
    """Terminal, as COMPLETED."""
    CANCELLED = auto()
    """Terminal, as COMPLETED."""
    RESOURCE_FAILED = auto()
    """Terminal, as COMPLETED: no compute could be had, or it was lost too often."""
    SUBMIT_FAILED = auto()
    """Terminal, as COMPLETED: metadata refused the batch."""


class JobEvent(StrEnum):
    PLAN = "plan"
    PREPARE = "prepare"
    SUBMIT = "submit"
    ACCEPT = "accept"
    RUN = "run"
    FINALIZE = "finalize"
    REPLAN = "replan"
    REQUEUE = "requeue"
    CANCEL = "cancel"
    COMPLETE = "complete"
    FAIL = "fail"
    EXPIRE = "expire"
    CONFIRM_CANCEL = "confirm_cancel"
    FAIL_RESOURCE = "fail_resource"
    FAIL_SUBMIT = "fail_submit"


S = JobState
E = JobEvent
TERMINAL = frozenset({S.COMPLETED, S.FAILED, S.EXPIRED, S.CANCELLED, S.RESOURCE_FAILED, S.SUBMIT_FAILED})
LIVE = frozenset(S) - TERMINAL
BEFORE_BATCH = {S.QUEUED, S.PLANNED, S.RESOURCE_PREPARING, S.SUBMITTING}
WITH_BATCH = {S.VALIDATING, S.IN_PROGRESS, S.FINALIZING}

#         event              from                                                to
LIFECYCLE = Machine({
    E.PLAN:           ({S.QUEUED},                                            S.PLANNED),
    E.PREPARE:        ({S.PLANNED},                                           S.RESOURCE_PREPARING),
    E.SUBMIT:         ({S.RESOURCE_PREPARING},                                S.SUBMITTING),
    E.ACCEPT:         ({S.SUBMITTING},                                        S.VALIDATING),
    # From before SUBMITTING only to see a batch off that waited for other compute until it had to end.
    E.RUN:            ({*BEFORE_BATCH, S.VALIDATING},                         S.IN_PROGRESS),
    E.FINALIZE:       ({S.VALIDATING, S.SUBMITTING, S.IN_PROGRESS},           S.FINALIZING),
    # The compute was lost or refused, and another try is allowed.
    E.REPLAN:         ({S.RESOURCE_PREPARING, S.SUBMITTING, *WITH_BATCH},     S.PLANNED),
    # There was no compute: the policy decides again, a while later or when some has become free.
    E.REQUEUE:        ({S.RESOURCE_PREPARING, S.SUBMITTING, *WITH_BATCH},     S.QUEUED),
    E.CANCEL:         ({*BEFORE_BATCH, *WITH_BATCH},                          S.CANCELLING),
    E.COMPLETE:       ({S.SUBMITTING, *WITH_BATCH, S.CANCELLING},             S.COMPLETED),
    E.FAIL:           ({S.QUEUED, S.PLANNED, S.SUBMITTING, *WITH_BATCH, S.CANCELLING}, S.FAILED),
    E.EXPIRE:         ({*BEFORE_BATCH, *WITH_BATCH, S.CANCELLING},            S.EXPIRED),
    E.CONFIRM_CANCEL: ({S.CANCELLING},                                        S.CANCELLED),
    E.FAIL_RESOURCE:  ({S.PLANNED, S.RESOURCE_PREPARING, *WITH_BATCH, S.CANCELLING}, S.RESOURCE_FAILED),
    E.FAIL_SUBMIT:    ({S.SUBMITTING},                                        S.SUBMIT_FAILED),
})  # fmt: skip


class ProvisionState(NamedState):
    PENDING = auto()
    """The intent is stored. Whoever leases it asks the providers; after a crash it first looks whether they were asked."""
    PROVISIONING = auto()
    """The provider makes the machines, and they are looked at until all run."""
    RUNNING = auto()
    """In use. Looked at now and then: a machine that is gone makes it FAILED."""
    FAILED = auto()
    """What exists of it is being given back; then it is RELEASED, with its error."""
    RELEASING = auto()
    """Being given back, again and again until the provider confirms."""
    RELEASED = auto()
    """Terminal: nothing of it is left."""


class ProvisionEvent(StrEnum):
    START = "start"
    RUN = "run"
    FAIL = "fail"
    RELEASE = "release"
    CONFIRM = "confirm"


P = ProvisionState

PROVISION_LIFECYCLE = Machine({
    ProvisionEvent.START:   ({P.PENDING},                                        P.PROVISIONING),
    ProvisionEvent.RUN:     ({P.PROVISIONING},                                   P.RUNNING),
    ProvisionEvent.FAIL:    ({P.PENDING, P.PROVISIONING, P.RUNNING},             P.FAILED),
    ProvisionEvent.RELEASE: ({P.PENDING, P.PROVISIONING, P.RUNNING, P.FAILED},   P.RELEASING),
    ProvisionEvent.CONFIRM: ({P.RELEASING, P.FAILED},                            P.RELEASED),
})  # fmt: skip
LIVE_PROVISIONS = frozenset(P) - {P.RELEASED}
