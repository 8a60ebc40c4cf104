"""Runners scaled 3 -> 1 -> 4 -> 0 during ten batches, as an autoscaler would that asks metadata through KEDA's own contract:
nothing is lost, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import openai
import orjson
from aiohttp import web
from grpc import aio

from brix.runner.v1 import runner_pb2, runner_pb2_grpc
from externalscaler import externalscaler_pb2 as keda
from externalscaler import externalscaler_pb2_grpc as keda_grpc
from tests.e2e.processes import PATIENCE_S, Suite, Witness, eventually, free_port, suite

LINES = 60
CONCURRENCY = 8
SLOTS = 2
BATCHES = 10
ROLES = ("metadata", "gateway")


class Gate(Witness):
    """A witness that answers so many lines of each batch, and keeps the others waiting until it may answer more."""

    def __init__(self) -> None:
        super().__init__(latency_s=0.01)
        self._answered = dict.fromkeys(range(BATCHES), CONCURRENCY)
        self._opened = asyncio.Condition()

    async def answer(self, request: web.Request) -> web.Response:
        answer = await super().answer(request)
        text = orjson.loads(await request.read())["messages"][0]["content"]
        batch, line = map(int, text.split(":"))
        async with self._opened:
            await self._opened.wait_for(lambda: line < self._answered[batch])
        return answer

    async def open(self, batch: int, lines: int = LINES) -> None:
        async with self._opened:
            self._answered[batch] = lines
            self._opened.notify_all()

    def sent(self, batch: int) -> int:
        return sum(text.startswith(f"{batch}:") for text in self.seen)


@asynccontextmanager
async def gate() -> AsyncIterator[Gate]:
    engine = Gate()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    served = web.AppRunner(app, shutdown_timeout=0.1)
    await served.setup()
    port = free_port()
    await web.TCPSite(served, "127.0.0.1", port).start()
    engine.url = f"http://127.0.0.1:{port}"
    try:
        yield engine
    finally:
        await served.cleanup()


class Scaler:
    """Asks what KEDA asks, and reckons as the HPA does: the metric over its target, rounded up."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = keda_grpc.ExternalScalerStub(channel)
        metadata = {"scalerAddress": "metadata:50051", "slotsPerRunner": str(SLOTS), "relaxedWeight": "1"}
        self._ref = keda.ScaledObjectRef(name="runner", namespace="aibrix", scalerMetadata=metadata)
        self._pushed = self._stub.StreamIsActive(self._ref)

    async def replicas(self) -> int:
        (spec,) = (await self._stub.GetMetricSpec(self._ref)).metricSpecs
        asked = keda.GetMetricsRequest(scaledObjectRef=self._ref, metricName=spec.metricName)
        (value,) = (await self._stub.GetMetrics(asked)).metricValues
        count = math.ceil(value.metricValueFloat / spec.targetSizeFloat)
        assert (await self._stub.IsActive(self._ref)).result is (count > 0)
        return count

    async def wants(self, count: int) -> None:
        async def does() -> bool:
            return await self.replicas() == count

        await eventually(does, f"{count} replicas are wanted")

    async def says(self) -> bool:
        """What it pushes next."""
        async with asyncio.timeout(PATIENCE_S):
            return bool((await self._pushed.read()).result)


class Fleet:
    """Runner processes, as many as were asked for."""

    def __init__(self, platform: Suite, folder: Path, stack: AsyncExitStack) -> None:
        self._platform = platform
        self._folder = folder
        self._stack = stack
        self._made = 0
        self.running: list[Suite] = []

    async def grow(self, count: int) -> None:
        """To `count` runners, all of which serve."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count - len(self.running)):
                group.create_task(self._add())

    async def _add(self) -> None:
        self._made += 1
        folder = self._folder / f"runner-{self._made}"
        folder.mkdir()
        env = {
            "AIBRIX_METADATA_ADDR": self._platform.listens["metadata"],
            "AIBRIX_DATA_DIR": self._platform.env["AIBRIX_DATA_DIR"],
            "AIBRIX_RUNNER__SLOTS": str(SLOTS),
        }
        runner = await self._stack.enter_async_context(suite(folder, **env))
        await runner.start("runner")
        self.running.append(runner)

    async def status(self, runner: Suite) -> runner_pb2.RunnerStatus:
        async with aio.insecure_channel(runner.listens["runner"]) as channel:
            stub = runner_pb2_grpc.RunnerServiceStub(channel)
            return await stub.GetStatus(runner_pb2.GetStatusRequest(), timeout=10)

    async def held(self) -> list[tuple[set[str], Suite]]:
        """What each runner has, and which it is; those with least first."""
        found = [({one.batch_id for one in (await self.status(it)).executions}, it) for it in self.running]
        return sorted(found, key=lambda pair: len(pair[0]))

    async def hold(self, ids: set[str]) -> None:
        """Return when they run exactly these batches."""

        async def do() -> bool:
            return set().union(*[found for found, _ in await self.held()]) == ids

        await eventually(do, "the runners have taken the batches")

    async def drains(self, runner: Suite) -> None:
        async def does() -> bool:
            return (await self.status(runner)).draining

        await eventually(does, "the runner drains")


async def create(client: openai.AsyncOpenAI, folder: Path, engine: Gate, number: int) -> str:
    path = folder / f"{number}.jsonl"
    with path.open("wb") as out:
        for line in range(LINES):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{number}:{line}"}]}
            out.write(
                orjson.dumps({"custom_id": f"{line}", "method": "POST", "url": "/v1/chat/completions", "body": body})
            )
            out.write(b"\n")
    file = await client.files.create(file=path, purpose="batch")
    block = {
        "runtime": {"target": "External", "options": {"base_url": engine.url}},
        "client": {"max_concurrency": CONCURRENCY, "adaptive_concurrency": False},
    }
    batch = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"aibrix": block},
    )
    return batch.id


async def completed(client: openai.AsyncOpenAI, id: str, number: int) -> None:
    """I1: every line stands exactly once in its output, with its own answer."""

    async def ended() -> bool:
        return (await client.batches.retrieve(id)).status in ("completed", "failed", "expired", "cancelled")

    await eventually(ended, f"batch {number} ends")
    batch = await client.batches.retrieve(id)
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"completed": LINES, "failed": 0, "total": LINES}
    assert batch.output_file_id is not None
    text = (await client.files.content(batch.output_file_id)).content
    answers = {}
    for line in map(orjson.loads, text.splitlines()):
        answers[line["custom_id"]] = line["response"]["body"]["choices"][0]["message"]["content"]
    assert len(text.splitlines()) == LINES
    assert answers == {f"{line}": f"{number}:{line}" for line in range(LINES)}


async def test_three_one_four_none(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(gate())
        platform = await stack.enter_async_context(suite(tmp_path, *ROLES))
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="none", max_retries=8, timeout=30)
        )
        scaler = Scaler(await stack.enter_async_context(aio.insecure_channel(platform.listens["metadata"])))
        fleet = Fleet(platform, tmp_path, stack)
        assert not await scaler.says()
        await scaler.wants(0)

        ids = [await create(client, tmp_path, engine, number) for number in range(5)]
        assert await scaler.says()
        await scaler.wants(3)
        await fleet.grow(3)
        await fleet.hold(set(ids))
        await scaler.wants(3)

        for number in range(3):
            await engine.open(number)
            await completed(client, ids[number], number)
        await scaler.wants(1)
        await shrink_in_the_middle_of_requests(engine, fleet, ids, {3, 4})
        await scaler.wants(1)

        ids += [await create(client, tmp_path, engine, number) for number in range(5, BATCHES)]
        await scaler.wants(4)
        await fleet.grow(4)
        await fleet.hold(set(ids[3:]))
        await scaler.wants(4)

        for number in range(3, BATCHES):
            await engine.open(number)
        for number in range(3, BATCHES):
            await completed(client, ids[number], number)
        await scaler.wants(0)
        assert not await scaler.says()
        for runner in fleet.running:
            assert await runner.stop() == {"runner": 0}
        everything = {f"{number}:{line}": 1 for number in range(BATCHES) for line in range(LINES)}
        assert engine.times() == everything


async def shrink_in_the_middle_of_requests(engine: Gate, fleet: Fleet, ids: list[str], left: set[int]) -> None:
    """To one runner, and as badly as can be: those go that have all that is left, with all their requests in flight."""

    async def in_flight() -> bool:
        return all(engine.sent(number) == 2 * CONCURRENCY for number in left)

    await eventually(in_flight, "all requests that may be in flight are")
    await fleet.hold({ids[number] for number in left})
    (nothing, survivor), *going = await fleet.held()
    assert not nothing
    children = [runner.running.pop("runner") for _, runner in going]
    for child in children:
        child.terminate()
    async with asyncio.TaskGroup() as group:
        for batches, runner in going:
            if batches:
                group.create_task(fleet.drains(runner))
    fleet.running = [survivor]
    # They neither sent anything since nor left: their requests are waited for.
    assert await in_flight()
    assert {child.returncode for (batches, _), child in zip(going, children, strict=True) if batches} == {None}
    for number in left:
        await engine.open(number, 2 * CONCURRENCY)
    async with asyncio.timeout(PATIENCE_S):
        assert [await child.wait() for child in children] == [0, 0]
    await fleet.hold({ids[number] for number in left})
