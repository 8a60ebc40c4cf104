"""How a batch ends, and what stands in the lines that were not run then."""

from __future__ import annotations

from services.runner.domain import End, Failure, Goal

# Ends that are allowed whatever the goal is: nobody could write the error lines.
INPUT_UNAVAILABLE = Failure(code="input_unavailable", message="The input file can no longer be read.")
OUTPUT_FULL = Failure(
    code="output_limit_exceeded",
    message="The results are larger than the profile of this batch allows (quota.max_output_size_gb).",
)
INTERNAL_ERROR = Failure(code="internal_error", message="The batch could not be run; the runner's log says why.")

UNFINISHED = {
    Goal.CANCEL: Failure(
        code="batch_cancelled", message="This request was not executed before the batch was cancelled."
    ),
    Goal.EXPIRE: Failure(
        code="batch_expired", message="This request could not be executed before the completion window expired."
    ),
}
ENDS = {Goal.RUN: End.COMPLETED, Goal.CANCEL: End.CANCELLED, Goal.EXPIRE: End.EXPIRED}
