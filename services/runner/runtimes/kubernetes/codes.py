"""Exit codes that a Job's pod failure policy knows: no other try makes good what they mean."""

from __future__ import annotations

# Those of sysexits.h, which no shell and no signal uses.
ENGINE_NEVER_READY = 69
"""The worker: the engine beside it did not become ready in time."""
BAD_CONFIGURATION = 78
"""The worker: its settings, or its batch, are wrong."""
DOWNLOAD_REFUSED = 2
"""`aibrix-batch download-model`: the URI, the credentials or the names in the bucket are wrong."""

WORKER_CODES = (ENGINE_NEVER_READY, BAD_CONFIGURATION)
DOWNLOAD_CODES = (DOWNLOAD_REFUSED,)
