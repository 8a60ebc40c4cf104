"""A process with a Local runtime, to be killed: `python -m tests.runtimes.runner_process FOLDER FLAG...`.

It writes a line when it comes to each moment: launching, launched, ready, releasing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from services.kit.log import configure
from services.kit.settings import Log
from services.runner.runtimes.local import Local
from tests.runtimes.support import command, local_spec, settings, until_ready


async def main(folder: Path, *flags: str) -> None:
    configure(Log())
    spec = local_spec("batch_1", {"command": "engine"})
    runtime = Local(settings(folder, **command("engine", *flags)), grace_s=2.0)
    say("launching")
    handle = await runtime.launch(spec)
    say("launched", **handle)
    await until_ready(runtime, spec, handle)
    say("ready", **handle)
    if await asyncio.to_thread(sys.stdin.readline):
        say("releasing")
        await runtime.release(handle)
        say("released")


def say(moment: str, **more: object) -> None:
    print(json.dumps({"moment": moment, **more}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
