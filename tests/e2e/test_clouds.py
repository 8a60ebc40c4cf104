"""Jobs on rented machines, from `POST /api/v1/jobs` to the end of the rent: clouds by their documents, real SSH servers behind them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from services.kit.lines import LineSet
from tests.e2e.clouds import (
    ACCELERATOR,
    CLOUDS,
    LOOPBACK,
    SEGMENT,
    TURNED_AWAY,
    ClientKey,
    Cloud,
    planner_and_runner,
    separate_ports,
)
from tests.e2e.processes import eventually, suite
from tests.e2e.test_jobs import Api
from tests.e2e.test_sdk import FINE, jsonl, line
from tests.ssh.machine import make_key, sshd_program

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("kind", CLOUDS)]
LINES = 40
CONCURRENCY = 4
LOST = "Compute was lost, asking for other"
TEMPLATE = {
    "engine": {
        "type": "vllm",
        "image": "vllm/vllm-openai:v0.33.0",
        "serve_args": ["--max-model-len", "4096", "--enable-prefix-caching"],
        "ready_timeout_seconds": 60,
    },
    "model_source": {"type": "huggingface", "uri": "acme/tiny"},
    "accelerator": {"type": ACCELERATOR, "count": 1},
    "supported_endpoints": [FINE],
}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> ClientKey:
    file = tmp_path_factory.mktemp("key") / "id_ed25519"
    return ClientKey(file, make_key(file))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory, key: ClientKey) -> AsyncIterator[Api]:
    """The roles that see no machine, as processes."""
    sshd_program()  # or skip
    env = {
        "AIBRIX_EXTERNAL__ALLOWED_HOSTS": LOOPBACK,
        "AIBRIX_BATCH_MAX_CONCURRENCY": str(CONCURRENCY),
        "AIBRIX_BATCH_ADAPTIVE_CONCURRENCY": "false",
    }
    folder = tmp_path_factory.mktemp("clouds")
    roles = ("console", "metadata", "gateway")
    async with suite(folder, *roles, **env) as platform, aiohttp.ClientSession() as session:
        made = Api(platform, session)
        await made.call("POST", "/models", {"id": "model-tiny", "name": "tiny", "serving_name": "m"})
        template = {"name": "tiny", "version": "v1", "spec": TEMPLATE}
        await made.call("POST", "/models/model-tiny/deployment-templates", template)
        yield made


class Site:
    """A cloud, the planner that rents there, and the rest of the platform."""

    def __init__(self, api: Api, cloud: Cloud, client: openai.AsyncOpenAI) -> None:
        self.api = api
        self.cloud = cloud
        self.client = client

    async def submit(self) -> dict[str, Any]:
        data = jsonl(*(line(f"line-{n}") for n in range(LINES)))
        file = await self.client.files.create(file=("in.jsonl", data), purpose="batch")
        return await self.api.job(input_dataset=file.id)

    async def job(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.api.call("GET", f"/jobs/{id}")
        return found

    async def done(self, id: str, count: int) -> str:
        """Wait until so many lines are committed; the batch."""
        found: dict[str, Any] = {}

        async def enough() -> bool:
            found.update(await self.job(id))
            return (found["request_counts"] or {}).get("completed", 0) >= count

        await eventually(enough, f"{count} lines are done", lambda: self._why(found))
        return str(found["batch_id"])

    async def said(self, id: str, label: str) -> dict[str, Any]:
        """Wait for a line of the timeline; the job."""
        found: dict[str, Any] = {}

        async def there() -> bool:
            found.update(await self.job(id))
            return label in labels(found)

        await eventually(there, label, lambda: self._why(found))
        return found

    async def ids(self, file_id: str | None) -> Counter[str]:
        if file_id is None:
            return Counter()
        content = await self.client.files.content(file_id)
        return Counter(json.loads(one)["custom_id"] for one in content.content.splitlines())

    async def is_on(self, job: dict[str, Any], number: int) -> None:
        """The machine of that number is the one that the job's batch names, with the host key that the cloud passed on."""
        id, machine = list(self.cloud.rented)[number], self.cloud.machines[number]
        (known,) = job["provision"]["machines"]
        assert (known["id"], known["host_key"]) == (id, machine.host_key)
        block = (await self.client.batches.retrieve(job["batch_id"])).to_dict()["aibrix"]
        assert block["runtime"]["target"] == self.cloud.target
        options = block["runtime"]["options"]
        where = (options["host"], options["ssh_port"], options["ssh_user"], options["host_key"])
        assert where == (machine.host, machine.port, machine.user, machine.host_key)
        assert block["resource_allocation"]["provision_id"] == job["provision_id"]

    async def released(self, id: str) -> dict[str, Any]:
        """All machines are given back, and nothing runs on them; the job."""
        await self.cloud.gone()
        assert self.cloud.listed() == []
        for one in self.cloud.rented.values():
            assert one.left_over == []  # before the cloud ended it: the runner had ended its engine
            assert one.machine.left_over() == []
        return await self.said(id, "Compute released")

    def asked(self) -> Counter[str]:
        """How often each line was asked, on all machines."""
        return sum((machine.times() for machine in self.cloud.machines), Counter())

    def _why(self, job: dict[str, Any]) -> str:
        return f"{json.dumps(job, indent=1)}\n{self.api.platform.log('metadata')[-3000:]}"


@asynccontextmanager
async def site(
    kind: str,
    api: Api,
    folder: Path,
    key: ClientKey,
    monkeypatch: pytest.MonkeyPatch,
    *,
    boot_s: float = 60.0,
    impostors: int = 0,
    **knobs: Any,
) -> AsyncIterator[Site]:
    """`impostors`: so many machines at first are not those that they should be. `knobs`: see `Machine.knobs`."""
    cloud = CLOUDS[kind](folder, key, **knobs)
    cloud.impostors = impostors
    async with (
        cloud.runs(),
        planner_and_runner(api.platform, cloud, monkeypatch, boot_s),
        openai.AsyncOpenAI(base_url=f"{api.platform.url}/v1", api_key="any") as client,
    ):
        yield Site(api, cloud, client)


def names(lines: LineSet) -> Counter[str]:
    return Counter(f"line-{n}" for n in lines)


def labels(job: dict[str, Any]) -> list[str]:
    return [event["label"] for event in job["events"]]


def entered(log: str) -> list[str]:
    """Lines of sshd's about somebody who said who he is, or got in."""
    signs = ("Accepted", "authenticating user", "Starting session")
    return [line for line in log.splitlines() if any(sign in line for sign in signs)]


def in_order(wanted: list[str], seen: list[str]) -> bool:
    rest = iter(seen)
    return all(one in rest for one in wanted)


def everything() -> dict[str, int]:
    return {f"line-{n}": 1 for n in range(LINES)}


async def test_a_job_rents_a_machine_and_gives_it_back(
    kind: str, api: Api, tmp_path: Path, key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(kind, api, tmp_path, key, monkeypatch, pull_s=1.0, startup_s=1.0, latency_ms=100) as here:
        made = await here.submit()
        job = await api.ended(made["id"])
        assert (job["status"], job["error_message"]) == ("completed", None)
        assert job["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert await here.ids(job["output_dataset"]) == everything()
        assert job["error_dataset"] is None
        assert here.asked() == everything()
        await here.is_on(job, 0)
        job = await here.released(job["id"])
        pulled = ["Pulling the engine's image"] if kind == "lambdaCloud" else []
        told = [*pulled, "Loading the model", "The engine is ready", "Completed", "Compute released"]
        assert in_order(told, labels(job)), "; ".join(labels(job))
        (machine,) = here.cloud.machines
        (call,) = machine.calls()
        assert call["argv"][-4:-2] == ["--host", "127.0.0.1" if kind == "runpod" else "0.0.0.0"]
        words = ["--max-model-len", "4096", "--enable-prefix-caching", "--served-model-name=m"]
        assert in_order(["acme/tiny", *words], call["argv"]), call["argv"]
        if kind == "lambdaCloud":
            assert ["pull", TEMPLATE["engine"]["image"]] in machine.docker_calls()
            private = (machine.folder / "host_key").read_bytes().splitlines()[2]
            stored = b"".join(path.read_bytes() for path in tmp_path.glob("planner.db*"))
            assert machine.host_key.encode() in stored
            assert private not in stored


async def test_a_machine_with_another_host_key_gets_nothing(
    kind: str, api: Api, tmp_path: Path, key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RunPod: another server answers than the one in the pod's log. Lambda: cloud-init never runs. The next machine has its key."""
    async with site(kind, api, tmp_path, key, monkeypatch, impostors=1, boot_s=5.0) as here:
        made = await here.submit()
        job = await api.ended(made["id"])
        assert (job["status"], job["error_message"]) == ("completed", None)
        assert await here.ids(job["output_dataset"]) == everything()
        await here.is_on(job, 1)
        job = await here.released(job["id"])
        assert LOST in labels(job)
        impostor, honest = here.cloud.machines
        assert TURNED_AWAY in impostor.log()
        assert entered(impostor.log()) == []
        assert impostor.requests() == impostor.calls() == impostor.docker_calls() == []
        said_before = list(here.cloud.rented.values())[1].said_before
        assert (TURNED_AWAY in said_before) == (kind == "lambdaCloud")
        assert entered(said_before) == []
        assert entered(honest.log())
        assert honest.times() == everything()


async def test_a_cancel_midway_keeps_what_was_done(
    kind: str, api: Api, tmp_path: Path, key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(kind, api, tmp_path, key, monkeypatch, latency_ms=250) as here:
        made = await here.submit()
        await here.done(made["id"], SEGMENT)
        await api.call("POST", f"/jobs/{made['id']}/cancel")
        job = await api.ended(made["id"])
        assert job["status"] == "cancelled"
        done, rest = await here.ids(job["output_dataset"]), await here.ids(job["error_dataset"])
        assert SEGMENT <= len(done) < LINES
        assert done + rest == everything()
        assert job["request_counts"]["completed"] == len(done)
        assert here.asked() == done  # what was begun was waited for
        await here.released(job["id"])
        assert len(here.cloud.rented) == 1


async def test_a_machine_that_dies_midway_is_replaced(
    kind: str, api: Api, tmp_path: Path, key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud goes on calling it active. The batch rests until there is another one."""
    async with site(kind, api, tmp_path, key, monkeypatch, latency_ms=200) as here:
        made = await here.submit()
        batch_id = await here.done(made["id"], 2 * SEGMENT)
        here.cloud.power.clear()
        (first,) = here.cloud.machines
        await first.kill(everything=True)
        job = await here.said(made["id"], LOST)
        (why,) = [event["message"] for event in job["events"] if event["label"] == LOST]
        assert "could not be reached for 1 s" in why
        assert "Connecting to the machine" in labels(job)
        kept = names(api.platform.committed(batch_id))
        assert 2 * SEGMENT <= len(kept) < LINES
        assert (await here.client.batches.retrieve(batch_id)).status == "in_progress"

        here.cloud.power.set()
        job = await api.ended(made["id"])
        assert (job["status"], job["error_message"], job["batch_id"]) == ("completed", None, batch_id)
        assert job["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert await here.ids(job["output_dataset"]) == everything()
        assert job["error_dataset"] is None
        await here.is_on(job, 1)
        job = await here.released(job["id"])
        assert f"Batch {batch_id} goes on with the new compute" in labels(job)

        _, second = here.cloud.machines
        assert second.times() == Counter(everything()) - kept
        assert set(first.times().values()) == {1}
        again = first.times() & second.times()
        assert len(again) <= SEGMENT + CONCURRENCY


async def test_a_machine_that_its_cloud_forgets_works_on_for_nothing(
    kind: str, api: Api, tmp_path: Path, key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runner notices nothing, until the batch is given to the next machine: from then on it changes nothing any more."""
    separate_ports(monkeypatch)
    async with site(kind, api, tmp_path, key, monkeypatch, latency_ms=1500) as here:
        made = await here.submit()
        batch_id = await here.done(made["id"], SEGMENT)
        (first,) = here.cloud.machines
        here.cloud.forget(next(iter(here.cloud.rented)))
        await here.said(made["id"], f"Batch {batch_id} goes on with the new compute")
        job = await api.ended(made["id"])
        assert (job["status"], job["error_message"], job["batch_id"]) == ("completed", None, batch_id)
        assert job["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert await here.ids(job["output_dataset"]) == everything()
        await here.is_on(job, 1)
        job = await here.said(made["id"], "Compute released")
        assert here.cloud.listed() == []
        _, second = here.cloud.machines
        assert list(here.cloud.rented.values())[1].left_over == []
        assert first.engines()  # nobody can end it but the cloud, which says that there is none
        assert set(first.times().values()) == set(second.times().values()) == {1}
        again = first.times() & second.times()
        assert len(again) <= SEGMENT + CONCURRENCY
