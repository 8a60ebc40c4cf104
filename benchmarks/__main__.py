"""`make bench`: every measurement, or those that are named, and the table that docs/benchmarks.md shows."""

from __future__ import annotations

import platform
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import uvloop

from benchmarks import adaptive, creation, dispatch, latency, planning, saturation, ssh, support, transfer, validation

MEASURES: dict[str, Callable[[Path], Awaitable[list[support.Row]]]] = {
    "dispatch": dispatch.measure,
    "saturation": saturation.measure,
    "transfer": transfer.measure,
    "validation": validation.measure,
    "latency": latency.measure,
    "creation": creation.measure,
    "planning": planning.measure,
    "ssh": ssh.measure,
    "adaptive": adaptive.measure,
}


async def main(names: list[str]) -> int:
    rows: list[support.Row] = []
    for name in names or list(MEASURES):
        with support.scratch() as folder:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            rows += await MEASURES[name](folder)
    print(f"{platform.python_implementation()} {platform.python_version()}, {psutil.cpu_count()} cores\n")
    print(support.table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    if wrong := set(sys.argv[1:]) - set(MEASURES):
        sys.exit(f"no such measure: {', '.join(sorted(wrong))}; there are {', '.join(MEASURES)}")
    sys.exit(uvloop.run(main(sys.argv[1:])))
