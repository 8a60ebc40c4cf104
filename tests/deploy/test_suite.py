"""The roles as docker-compose.yml starts them, as processes on loopback: its commands, settings, order and health checks.

In place of the containers' network every address is a free port of this machine, with a real PostgreSQL server and a
real S3 server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from urllib.parse import urlsplit

import openai
import orjson

from gateway.auth import new_key
from services.__main__ import ROLES
from tests.cli.support import COMMAND, PATIENCE_S, environment, request
from tests.deploy.files import compose, dockerfile, interpolated
from tests.e2e.processes import eventually, free_port, witness

COUNT = 300
OURS = {name: one for name, one in compose()["services"].items() if one["image"] == "aibrix-batch"}


class Machine:
    """Translates what a container would see into what this machine has, and runs the services."""

    def __init__(self, folder: Path, database_url: str, objects: Mapping[str, str], engine: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self.objects = objects
        key, line = new_key("default", "test")
        self.key = key
        (folder / "api_keys").write_text(line + "\n")
        self.variables = {
            "POSTGRES_PASSWORD": "unused",
            "S3_ACCESS_KEY_ID": objects["access_key_id"],
            "S3_SECRET_ACCESS_KEY": objects["secret_access_key"],
            "SECRETS_ENCRYPTION_KEY": "ab" * 32,
            "AIBRIX_DEFAULT_ENDPOINT": engine,
        }
        self.ports = {role: free_port() for role in ROLES}
        self.running: dict[str, asyncio.subprocess.Process] = {}

    def env(self, name: str) -> dict[str, str]:
        """What the service finds: the image's environment and its own."""
        role = OURS[name]["command"][1]
        image = {key: value for key, value in dockerfile()[-1].env().items() if key.startswith("AIBRIX_")}
        given = image | interpolated(OURS[name]["environment"], self.variables)
        found = {key: self.here(key, value) for key, value in given.items()}
        port = self.ports[role] if name == role else free_port()  # the second runner has a machine of its own
        return found | {
            "AIBRIX_DATA_DIR": str(self.folder / name),
            f"AIBRIX_{role.upper()}__LISTEN": f"127.0.0.1:{port}",
        }

    def here(self, key: str, value: str) -> str:
        if key.endswith("_ADDR"):
            return f"127.0.0.1:{self.ports[value.partition(':')[0]]}"
        if key.endswith("METRICS_LISTEN"):
            return f"127.0.0.1:{free_port()}"
        if key.endswith("__DATABASE_URL"):
            assert urlsplit(value).hostname == "postgres"
            return self.database_url
        if key == "AIBRIX_OBJECTS__ENDPOINT":
            assert value == "http://objects:9000"
            return self.objects["endpoint"]
        if key == "AIBRIX_OBJECTS__URL":
            return self.objects["url"]
        return str(self.folder / "api_keys") if key == "AIBRIX_API_KEYS_FILE" else value

    async def start(self, name: str) -> None:
        """Start the service, and wait until the health check of the file says that it is well."""
        env = environment(**self.env(name))
        with (self.folder / f"{name}.log").open("wb") as log:
            argv = (*COMMAND, "serve", *OURS[name]["command"])
            self.running[name] = await asyncio.create_subprocess_exec(*argv, env=env, stdout=log, stderr=log)
        program, *check = OURS[name]["healthcheck"]["test"][1:]
        assert program == "aibrix-batch"

        async def healthy() -> bool:
            assert self.running[name].returncode is None, self.log(name)
            asked = await asyncio.create_subprocess_exec(
                *COMMAND, *check, env=env, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            return await asked.wait() == 0

        await eventually(healthy, f"{name} is healthy")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    async def stop(self) -> dict[str, int]:
        """SIGTERM to all at once, as `docker compose stop` does; their exit codes."""
        for process in self.running.values():
            if process.returncode is None:
                process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            return {name: await process.wait() for name, process in self.running.items()}


async def test_the_suite_runs_a_batch_and_stops_cleanly(
    tmp_path: Path, postgres_url: str, s3_objects: dict[str, str]
) -> None:
    order = TopologicalSorter({name: set(one["depends_on"]) & OURS.keys() for name, one in OURS.items()}).static_order()
    names = [f"r-{number}" for number in range(COUNT)]
    async with witness(latency_s=0.01) as engine:
        machine = Machine(tmp_path, postgres_url, s3_objects, engine.url)
        try:
            for name in order:
                await machine.start(name)
            lines = await run_batch(f"http://127.0.0.1:{machine.ports['gateway']}/v1", machine.key, names)
        finally:
            codes = await machine.stop()
    assert sorted(line["custom_id"] for line in lines) == sorted(names)
    assert sorted(engine.seen) == sorted(names)
    assert codes == dict.fromkeys(OURS, 0)
    for name in OURS:
        assert not re.search(r"Traceback|test@|unused@", machine.log(name)), machine.log(name)
        assert machine.key not in machine.log(name)


async def run_batch(base_url: str, key: str, names: list[str]) -> list[dict[str, str]]:
    data = b"".join(orjson.dumps(request(name)) + b"\n" for name in names)
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, http_client=http) as client:
        file = await client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        async def completed() -> bool:
            nonlocal batch
            batch = await client.batches.retrieve(batch.id)
            assert batch.status not in ("failed", "expired", "cancelled"), batch
            return batch.status == "completed"

        await eventually(completed, "the batch completes")
        assert batch.output_file_id is not None
        content = await client.files.content(batch.output_file_id)
    return [orjson.loads(line) for line in content.content.splitlines()]
