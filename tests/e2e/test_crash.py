"""I1, I2, I3: `kill -9` of any role in the middle of a batch, and every custom_id still comes back exactly once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import orjson
import pytest

from tests.e2e.processes import Suite, Witness, eventually, suite, witness

LINES = 400
CONCURRENCY = 16
ROLES = ("metadata", "runner", "gateway")


def write_input(path: Path) -> None:
    with path.open("wb") as out:
        for number in range(LINES):
            body = {"model": "m", "messages": [{"role": "user", "content": f"line-{number}"}]}
            request = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(orjson.dumps(request) + b"\n")


def sdk(platform: Suite) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="none", max_retries=8, timeout=30)


async def start_batch(client: openai.AsyncOpenAI, folder: Path, engine: Witness) -> str:
    source = folder / "input.jsonl"
    write_input(source)
    uploaded = await client.files.create(file=source, purpose="batch")
    block = {
        "runtime": {"target": "External", "options": {"base_url": engine.url}},
        "client": {"max_concurrency": CONCURRENCY, "adaptive_concurrency": False},
    }
    batch = await client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"aibrix": block},
    )
    return batch.id


async def finished(client: openai.AsyncOpenAI, batch_id: str) -> openai.types.Batch:
    async def terminal() -> bool:
        try:
            return (await client.batches.retrieve(batch_id)).status in ("completed", "failed", "expired", "cancelled")
        except openai.APIConnectionError:
            return False

    await eventually(terminal, "the batch ends")
    return await client.batches.retrieve(batch_id)


async def check(client: openai.AsyncOpenAI, batch_id: str) -> None:
    batch = await finished(client, batch_id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"completed": LINES, "failed": 0, "total": LINES}
    assert batch.error_file_id is None
    assert batch.output_file_id is not None
    text = await client.files.content(batch.output_file_id)
    lines = [orjson.loads(line) for line in text.content.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"id-{n}" for n in range(LINES))
    for line in lines:
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert said == line["custom_id"].replace("id-", "LINE-")
    assert batch.usage is not None
    assert batch.usage.total_tokens == 5 * LINES


def check_resent(engine: Witness, sent_before: int, committed: set[str]) -> None:
    """I3: what was committed before the kill is not sent again; nothing is sent more often than the crash explains."""
    again = set(engine.seen[sent_before:]) & committed
    assert not again, f"committed and sent again: {sorted(again)[:5]}"
    assert max(engine.times().values()) <= 2


@pytest.mark.parametrize("moment", [1, LINES // 2, LINES - 5], ids=["start", "middle", "end"])
@pytest.mark.parametrize("victim", ["all", "metadata", "runner", "gateway"])
async def test_kill_nine(tmp_path: Path, victim: str, moment: int) -> None:
    roles = ("all",) if victim == "all" else ROLES
    async with (
        witness() as engine,
        suite(tmp_path, *roles, AIBRIX_RUNNER__SEGMENT_SECONDS="0.2") as platform,
        sdk(platform) as client,
    ):
        batch_id = await start_batch(client, tmp_path, engine)
        await engine.reached(moment)
        await platform.kill(victim)
        sent, committed = len(engine.seen), platform.committed(batch_id)
        await platform.start(victim)
        await check(client, batch_id)
        if victim in ("all", "runner"):
            check_resent(engine, sent + CONCURRENCY, {f"line-{n}" for n in committed})
        else:
            assert max(engine.times().values()) <= 2


async def test_kill_nine_again_and_again(tmp_path: Path) -> None:
    """The whole platform dies five times in one batch."""
    async with (
        witness() as engine,
        suite(tmp_path, "all", AIBRIX_RUNNER__SEGMENT_SECONDS="0.1") as platform,
        sdk(platform) as client,
    ):
        batch_id = await start_batch(client, tmp_path, engine)
        for _ in range(5):
            await engine.reached(len(engine.seen) + LINES // 10)
            await platform.kill("all")
            await platform.start("all")
        await check(client, batch_id)


async def test_a_second_runner_takes_over(tmp_path: Path) -> None:
    """A runner dies and another one, already waiting, goes on: with default lease times within 15 s."""
    env = {"AIBRIX_METADATA__LEASE_TTL_S": "10"}
    async with (
        witness(latency_s=0.3) as engine,
        suite(tmp_path, *ROLES, **env) as platform,
        suite(tmp_path, AIBRIX_METADATA_ADDR=platform.listens["metadata"]) as other,
        sdk(platform) as client,
    ):
        batch_id = await start_batch(client, tmp_path, engine)
        await engine.reached(LINES // 20)
        await other.start("runner")
        await platform.kill("runner")
        sent = len(engine.seen) + CONCURRENCY
        clock = asyncio.get_running_loop()
        killed = clock.time()
        await engine.reached(sent + 1)
        assert clock.time() - killed < 15
        await check(client, batch_id)


async def test_sigterm_hands_the_batch_over_without_sending_anything_twice(tmp_path: Path) -> None:
    async with witness() as engine, suite(tmp_path, *ROLES) as platform, sdk(platform) as client:
        batch_id = await start_batch(client, tmp_path, engine)
        await engine.reached(LINES // 3)
        runner = platform.running.pop("runner")
        runner.terminate()
        assert await runner.wait() == 0
        await platform.start("runner")
        await check(client, batch_id)
        assert set(engine.times().values()) == {1}
