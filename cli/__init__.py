"""The command line. It is imported first, so it also sees to a signal that comes before anybody else could handle it."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


# In a container this is process 1, and of what that does not handle the kernel drops every signal but SIGKILL: a pod that is
# deleted while it starts, downloads or migrates would go on until its grace period is over.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, _end)
