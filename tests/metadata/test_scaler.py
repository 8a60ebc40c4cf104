"""KEDA's external scaler, through KEDA's own stub: what it counts, what it refuses, and what it pushes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import orjson
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from brix.metadata.v1 import leases_pb2
from externalscaler import externalscaler_pb2 as pb
from externalscaler import externalscaler_pb2_grpc as pb_grpc
from services.kit.errors import Unavailable
from services.metadata.service import backlog as service
from tests.metadata.conftest import Metadata, State, eventually, serving_metadata
from tests.metadata.entries import a_spec

METRIC = "backlog-slots"
# As KEDA sends it: with what the trigger says to KEDA itself.
KEDAS = {"scalerAddress": "metadata:50051", "enableTLS": "false"}
TTL = 10
DAY = 86_400


def ref(**metadata: str) -> pb.ScaledObjectRef:
    return pb.ScaledObjectRef(name="runner", namespace="aibrix", scalerMetadata=KEDAS | metadata)


@pytest.fixture
async def scaler(metadata: Metadata) -> AsyncIterator[pb_grpc.ExternalScalerStub]:
    async with aio.insecure_channel(metadata.address) as channel:
        yield pb_grpc.ExternalScalerStub(channel)


async def slots(scaler, **wishes: str) -> float:
    answer = await scaler.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=ref(**wishes), metricName=METRIC))
    (value,) = answer.metricValues
    assert value.metricName == METRIC
    assert value.metricValue - 1 < value.metricValueFloat <= value.metricValue
    return value.metricValueFloat


async def active(scaler, **wishes: str) -> bool:
    return (await scaler.IsActive(ref(**wishes))).result


def target(name: str) -> str:
    spec = a_spec(engine={"type": "vllm", "image": "vllm/vllm-openai:v0.11.0"})
    block = {"runtime": {"target": name}, "model_template": {"name": "m", "spec": spec}}
    return orjson.dumps(block).decode()


async def release(metadata: Metadata, lease, retry_after_ms: int = 0) -> None:
    request = leases_pb2.ReleaseLeaseRequest(
        batch_id=lease.batch.id, token=lease.token, reason="drain", retry_after_ms=retry_after_ms
    )
    await metadata.leases.ReleaseLease(request)


async def test_nothing_to_do(scaler):
    assert await slots(scaler) == 0
    assert not await active(scaler)


async def test_what_keda_is_told_of_the_metric(scaler):
    (spec,) = (await scaler.GetMetricSpec(ref())).metricSpecs
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (METRIC, 4, 4.0)
    (spec,) = (await scaler.GetMetricSpec(ref(slotsPerRunner="7"))).metricSpecs
    assert (spec.targetSize, spec.targetSizeFloat) == (7, 7.0)


async def test_the_life_of_a_batch(metadata, scaler):
    """One slot from its validation to its end, however it ends, and none after that."""
    first, second, third = [await metadata.running(2) for _ in range(3)]
    assert await slots(scaler, relaxedWeight="1") == 3
    for batch in (first, second):
        lease = await metadata.acquire(batch_id=batch.id)
        if batch is first:
            await metadata.commit(lease, 1, [0, 1])
            await metadata.finalize(lease)
            assert await slots(scaler, relaxedWeight="1") == 3
            await metadata.finish(lease, State.COMPLETED, output=2)
        else:
            await metadata.cancel(batch.id)
            assert await slots(scaler, relaxedWeight="1") == 2
            await metadata.finish(lease, State.CANCELLED, error=2)
    assert (await slots(scaler, relaxedWeight="1"), await active(scaler)) == (1, True)
    await metadata.cancel(third.id)
    assert (await slots(scaler, relaxedWeight="0"), await active(scaler)) == (1, True)
    lease = await metadata.acquire()
    assert (await slots(scaler, relaxedWeight="0"), await active(scaler)) == (1, True)
    await metadata.finish(lease, State.CANCELLED, error=2)
    assert (await slots(scaler), await active(scaler)) == (0, False)


async def test_those_that_can_wait_share_slots_and_get_one_of_their_own_in_time(metadata, scaler):
    """Ten lines at one per second after a start of 300 s: it may wait until 620 s are left of its day."""
    wishes = {"linesPerSecond": "1", "startupSeconds": "300"}
    for _ in range(6):
        await metadata.running(10)
    assert await slots(scaler, **wishes) == 1.5
    assert await slots(scaler, relaxedWeight="0.1", **wishes) == 0.6
    assert await slots(scaler, relaxedWeight="0", **wishes) == pytest.approx(6 * 310 / DAY, abs=0.001)
    metadata.clock.advance(DAY - 621)
    assert await slots(scaler, **wishes) == pytest.approx(6 * 310 / 621, abs=0.001)
    metadata.clock.advance(1)
    assert await slots(scaler, **wishes) == 6
    metadata.clock.advance(700)
    assert await slots(scaler, **wishes) == 6


async def test_what_runs_keeps_its_slots_and_those_that_can_wait_get_no_more(metadata, scaler):
    for _ in range(6):
        await metadata.running(10)
    leases = [await metadata.acquire() for _ in range(2)]
    assert await slots(scaler) == 2
    for _ in range(8):
        await metadata.running(10)
    assert await slots(scaler) == 0.25 * 14
    assert await slots(scaler, startupSeconds="0", linesPerSecond="0.0001") == 14
    await release(metadata, leases[0])
    assert await slots(scaler, relaxedWeight="0") == 1
    metadata.clock.advance(TTL)
    assert await slots(scaler, relaxedWeight="0.01") == 0.14


async def test_an_urgent_one_does_not_wait_for_what_runs(metadata, scaler):
    """A batch is never taken from its runner, so what runs gives no slot to what cannot wait."""
    for _ in range(2):
        await metadata.leased(10)
    await metadata.running(10, completion_window="1h")
    assert await slots(scaler, startupSeconds="1700") == 2
    assert await slots(scaler, startupSeconds="1800") == 3


async def test_its_own_rate_counts_more_than_what_is_expected(metadata, scaler):
    lease = await metadata.leased(100)
    metadata.clock.advance(DAY / 4)
    await metadata.commit(lease, 1, list(range(10)))
    await release(metadata, lease)
    # At ten lines in six hours it needs 54 more, and has 18.
    assert await slots(scaler, linesPerSecond="1000", startupSeconds="0") == 1
    lease = await metadata.acquire()
    await metadata.commit(lease, 1, list(range(10, 90)))
    await release(metadata, lease)
    # Now forty minutes.
    assert await slots(scaler, linesPerSecond="0.00001", startupSeconds="0", relaxedWeight="0") == pytest.approx(
        (6 / 9) / 18, abs=0.001
    )


async def test_a_batch_that_rests_counts_when_its_rest_is_over(metadata, scaler):
    lease = await metadata.leased(10)
    await release(metadata, lease, retry_after_ms=30_000)
    assert (await slots(scaler), await active(scaler)) == (0, True)
    metadata.clock.advance(30)
    assert (await slots(scaler), await active(scaler)) == (0.25, True)


async def test_a_batch_without_compute_is_the_planners(metadata, scaler):
    lease = await metadata.leased(10)
    await metadata.leases.LoseCompute(
        leases_pb2.LoseComputeRequest(batch_id=lease.batch.id, token=lease.token, reason="gone")
    )
    assert (await slots(scaler), await active(scaler)) == (0, False)
    await metadata.cancel(lease.batch.id)
    assert (await slots(scaler), await active(scaler)) == (1, True)


async def test_a_batch_that_is_validated_or_was_never_is_no_work_of_runners(metadata, scaler):
    file = await metadata.file(b"not json\n")
    batch = await metadata.batch(input_file_id=file.id)
    await metadata.reaches(batch.id, State.FAILED)
    assert (await slots(scaler), await active(scaler)) == (0, False)


async def test_only_the_targets_that_are_asked_for(metadata, scaler):
    await metadata.running(1)
    for _ in range(2):
        await metadata.running(1, aibrix_json=target("Kubernetes"))
    all_of = {"relaxedWeight": "1"}
    assert await slots(scaler, **all_of) == 3
    assert await slots(scaler, targets="", **all_of) == 3
    assert await slots(scaler, targets="External", **all_of) == 1
    assert await slots(scaler, targets=" Kubernetes , External, Kubernetes,", **all_of) == 3
    assert await slots(scaler, targets="Local", **all_of) == 0
    assert not await active(scaler, targets="Local")
    assert await active(scaler, targets="Local,Kubernetes")


async def test_the_runner_of_a_job_is_nobodys_replica(metadata, scaler):
    """A pool's runner is wanted to start the Job; then its own runner has the batch."""
    await metadata.running(1, aibrix_json=target("KubernetesJob"))
    assert (await slots(scaler, relaxedWeight="1"), await active(scaler)) == (1, True)
    lease = await metadata.acquire(targets=["KubernetesJob"])
    assert lease is not None
    assert (await slots(scaler, relaxedWeight="1"), await active(scaler)) == (0, False)
    metadata.clock.advance(TTL)
    assert (await slots(scaler, relaxedWeight="1"), await active(scaler)) == (1, True)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("slotsPerRunner", "0"),
        ("slotsPerRunner", "2.5"),
        ("slotsPerRunner", "many"),
        ("slotsPerRunner", "1" * 5000),
        ("relaxedWeight", "1.01"),
        ("relaxedWeight", "-0.1"),
        ("relaxedWeight", "nan"),
        ("linesPerSecond", "0"),
        ("linesPerSecond", "inf"),
        ("linesPerSecond", "1e-320"),
        ("startupSeconds", "86401"),
        ("startupSeconds", "5m"),
        ("targets", "External\0"),
        ("targets", "x" * 129),
        ("targets", ",".join(str(n) for n in range(101))),
        ("slotsPerRuner", "4"),
        ("project", "default"),
    ],
)
async def test_wrong_metadata_is_named(scaler, key, text):
    metadata = {key: text}
    asked = pb.GetMetricsRequest(scaledObjectRef=ref(**metadata), metricName=METRIC)
    calls = [scaler.IsActive(ref(**metadata)), scaler.GetMetricSpec(ref(**metadata)), scaler.GetMetrics(asked)]
    for call in [*calls, anext(aiter(scaler.StreamIsActive(ref(**metadata))))]:
        with pytest.raises(aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"scalerMetadata.{key}" in raised.value.details()
        assert len(raised.value.details()) < 300


async def test_another_metric(scaler):
    with pytest.raises(aio.AioRpcError) as raised:
        await scaler.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=ref(), metricName="s0-backlog-slots"))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "metricName" in raised.value.details()


async def test_health_and_reflection_know_it(metadata):
    async with aio.insecure_channel(metadata.address) as channel:
        request = health_pb2.HealthCheckRequest(service="externalscaler.ExternalScaler")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def reflected() -> list[str]:
        with grpc.insecure_channel(metadata.address) as plain:
            found = ProtoReflectionDescriptorDatabase(plain)
            file = found.FindFileContainingSymbol("externalscaler.ExternalScaler")
            return [*found.get_services(), file.name]

    names = await asyncio.to_thread(reflected)
    assert {"externalscaler.ExternalScaler", "externalscaler/externalscaler.proto"} <= set(names)


async def test_there_is_no_stream_of_targets(scaler):
    """What KEDA takes for: ask, as ever."""
    with pytest.raises(aio.AioRpcError) as raised:
        await anext(aiter(scaler.StreamMetricSpec(ref())))
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_stream_says_it_at_once_and_when_it_changes(metadata, scaler, monkeypatch):
    monkeypatch.setattr(service, "POLL_S", 60.0)
    stream = scaler.StreamIsActive(ref(), timeout=30)
    others = scaler.StreamIsActive(ref(targets="Local"), timeout=30)
    assert not (await stream.read()).result
    assert not (await others.read()).result
    batch = await metadata.running(1)
    assert (await stream.read()).result  # woken by the bell: no poll comes within a minute
    monkeypatch.setattr(service, "POLL_S", 0.05)
    again = scaler.StreamIsActive(ref(), timeout=30)
    assert (await again.read()).result
    await metadata.running(1)
    for lease in [await metadata.acquire(batch_id=batch.id), await metadata.acquire()]:
        await metadata.commit(lease, 1, [0])
        await metadata.finalize(lease)
        await metadata.finish(lease, State.COMPLETED, output=1)
    assert not (await again.read()).result  # and nothing in between, while one of two was left
    await metadata.running(1)
    assert (await again.read()).result
    for call in (stream, again, others):
        call.cancel()


async def test_work_of_another_replica_is_found(make_settings, database_url, monkeypatch):
    monkeypatch.setattr(service, "POLL_S", 0.05)
    settings = make_settings(metadata={"database_url": database_url}, default_endpoint="http://127.0.0.1:9")
    async with (
        serving_metadata(settings) as one,
        serving_metadata(settings, one.clock) as other,
        aio.insecure_channel(other.address) as channel,
    ):
        stream = pb_grpc.ExternalScalerStub(channel).StreamIsActive(ref(), timeout=30)
        assert not (await stream.read()).result
        await one.running(1)
        assert (await stream.read()).result


async def test_the_stream_ends_with_the_server(make_settings, sqlite_url):
    settings = make_settings(metadata={"database_url": sqlite_url}, default_endpoint="http://127.0.0.1:9")
    clock = asyncio.get_running_loop()
    async with serving_metadata(settings) as served:
        channel = aio.insecure_channel(served.address)
        idle = pb_grpc.ExternalScalerStub(channel).StreamIsActive(ref(), timeout=30)
        busy = pb_grpc.ExternalScalerStub(channel).StreamIsActive(ref(), timeout=30)
        assert not (await idle.read()).result
        assert not (await busy.read()).result
        await served.running(1)
        assert (await busy.read()).result
        assert (await idle.read()).result
        leaving = clock.time()
    assert clock.time() - leaving < 3  # they did not have to be cut off after the server's grace
    for call in (idle, busy):
        assert await call.read() is aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    await channel.close()


async def test_a_stream_that_is_broken_off_leaves_nothing_behind(metadata, scaler):
    before = len(asyncio.all_tasks())
    calls = [scaler.StreamIsActive(ref()) for _ in range(20)]
    for call in calls:
        assert not (await call.read()).result
        call.cancel()

    async def gone() -> bool:
        return len(asyncio.all_tasks()) <= before

    await eventually(gone)


async def test_the_stream_outlives_an_outage_of_the_database(metadata, scaler, monkeypatch):
    """It says nothing while it cannot know."""
    monkeypatch.setattr(service, "POLL_S", 0.02)
    stream = scaler.StreamIsActive(ref(), timeout=30)
    assert not (await stream.read()).result
    failures, real = 0, service.backlog.is_any

    async def broken(tx, wishes):
        nonlocal failures
        failures += 1
        raise Unavailable("the database is unavailable, retry later")

    async def failed_often() -> bool:
        return failures > 2

    monkeypatch.setattr(service.backlog, "is_any", broken)
    await metadata.running(1)
    await eventually(failed_often)
    monkeypatch.setattr(service.backlog, "is_any", real)
    assert (await stream.read()).result
    stream.cancel()
