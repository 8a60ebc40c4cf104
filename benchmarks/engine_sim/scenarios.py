"""What a controller is tried on: engines, a workload, and what happens to them. Each scenario is one small object."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.engine_sim.sequence import EngineSpec
from benchmarks.engine_sim.specs import A10_8B, H100_8B, H100X4_70B
from benchmarks.engine_sim.workload import ANSWERS_LONG, CHAT, DOCUMENTS, EVEN, HEAVY_TAIL, MIXED, SHARED, Workload


@dataclass(frozen=True)
class Change:
    """The engine is another one from second `at`."""

    at: float
    spec: EngineSpec
    engine: int = 0


@dataclass(frozen=True)
class Restart:
    at: float
    seconds: float
    engine: int = 0


@dataclass(frozen=True)
class Burst:
    """Everything in flight gets a 503 at second `at`, and whatever comes in the `seconds` after it."""

    at: float
    seconds: float


@dataclass(frozen=True)
class Tenant:
    """Others' requests, from second `at` to `until`."""

    at: float
    until: float
    per_second: float
    engine: int = 0


@dataclass(frozen=True)
class Add:
    at: float
    spec: EngineSpec


@dataclass(frozen=True)
class Lose:
    """The engine dies and is taken off the list."""

    at: float
    engine: int = 0


Event = Change | Restart | Burst | Tenant | Add | Lose


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    engines: tuple[EngineSpec, ...]
    workload: Workload
    events: tuple[Event, ...] = ()
    seconds: float = 600.0
    cap: int = 256
    """Of the job, over all endpoints."""
    metrics: bool = True
    """Whether the engines show their metrics."""
    poll_s: float = 1.0
    error_rate: float = 0.0
    """Share of requests that get a 500, which says nothing about load."""
    delay_s: float = 0.0
    """Mean of what the network adds to each answer."""

    @property
    def phases(self) -> tuple[float, ...]:
        """When the best limit changes: 0 first."""
        times = {0.0}
        for event in self.events:
            if not isinstance(event, Restart | Burst):
                times.add(event.at)
            if isinstance(event, Tenant) and event.until < self.seconds:
                times.add(event.until)
        return tuple(sorted(times))

    @property
    def disturbances(self) -> tuple[float, ...]:
        """When a controller has to settle anew: at 0, after every event, and at the end of those that last."""
        times = {0.0, *self.phases}
        for event in self.events:
            if isinstance(event, Restart | Burst):
                times |= {event.at, event.at + event.seconds}
        return tuple(sorted(times))

    def blind(self) -> Scenario:
        return replace(self, name=self.name + ", blind", what=self.what + ", without metrics", metrics=False)


def hard(spec: EngineSpec, limit: int, waiting: int = 0) -> EngineSpec:
    """It refuses the request after `limit + waiting`."""
    return replace(spec, max_seqs=limit, max_waiting=waiting, retry_after_s=1.0)


SLOW_PREFILL = replace(H100_8B, prefill_s=150e-6)
KNEE_64 = replace(H100_8B, max_seqs=64)
SMALL_KV = replace(SLOW_PREFILL, kv_tokens=90_000)
CYCLE = replace(SLOW_PREFILL, kv_tokens=295_000)

KV_CLIFF = Scenario(
    "KV cliff", "the KV cache is full at about 90 requests, and prefill is slow", (SMALL_KV,), ANSWERS_LONG
)
THRASH = Scenario(
    "prefix cache thrash", "300 documents in turn fit into the cache beside few requests only", (CYCLE,), SHARED
)
SILENT = Scenario(
    "silent queue", "64 run, everything else waits and is never refused; the cap is 1,024", (KNEE_64,), CHAT, cap=1_024
)

GROWS = Scenario("latency grows", "steps get slower up to 256, throughput grows on", (H100X4_70B,), MIXED, seconds=900)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("knee at 8", "8 sequences, as a small llama.cpp server", (replace(A10_8B, max_seqs=8),), CHAT),
    Scenario("knee at 64", "64 sequences", (KNEE_64,), CHAT),
    Scenario("knee at 200", "200 sequences", (replace(H100_8B, max_seqs=200),), CHAT),
    KV_CLIFF,
    Scenario("hard 429 at 64", "the request after 64 is refused", (hard(H100_8B, 64),), CHAT, metrics=False),
    Scenario(
        "capacity halves",
        "128 and a queue of 16, then 64 and 8 at half the cache, then as before",
        (hard(H100_8B, 128, 16),),
        MIXED,
        (
            Change(200, replace(hard(H100_8B, 64, 8), kv_tokens=200_000)),
            Change(400, hard(H100_8B, 128, 16)),
        ),
    ),
    Scenario("restart", "the engine is gone for 30 s", (H100_8B,), CHAT, (Restart(200, 30),)),
    Scenario(
        "slow start",
        "a quarter of the speed for a minute",
        (replace(H100_8B, speed=0.25),),
        CHAT,
        (Change(60, H100_8B),),
    ),
    Scenario(
        "noisy latency",
        "answers come late by 3 s on average, steps vary",
        (replace(H100_8B, jitter=0.5),),
        CHAT,
        delay_s=3.0,
    ),
    Scenario("heavy-tailed output", "outputs from 4 to 8,192 tokens", (H100_8B,), HEAVY_TAIL, seconds=900),
    Scenario(
        "other tenant",
        "others bring half of what the engine can do",
        (replace(H100_8B, max_seqs=128),),
        CHAT,
        (Tenant(200, 400, 13.0),),
    ),
    Scenario(
        "two endpoints 4:1",
        "one has 4 times the speed and the sequences",
        (replace(H100_8B, max_seqs=160), replace(H100_8B, max_seqs=40, speed=0.25)),
        CHAT,
    ),
    Scenario("endpoint added", "a second one after 200 s", (KNEE_64,), CHAT, (Add(200, KNEE_64),)),
    Scenario("endpoint lost", "one of two is lost after 200 s", (KNEE_64, KNEE_64), CHAT, (Lose(200, 1),)),
    Scenario("1% errors", "one request in 100 gets a 500", (H100_8B,), CHAT, error_rate=0.01),
    GROWS,
    GROWS.blind(),
    SILENT,
    SILENT.blind(),
    Scenario("error burst", "everything in flight gets a 503, for one second", (H100_8B,), CHAT, (Burst(200, 1),)),
    Scenario("long documents", "8,000 tokens in, 150 out", (replace(H100_8B, prefill_s=72e-6),), DOCUMENTS),
    THRASH,
    KV_CLIFF.blind(),
    THRASH.blind(),
    Scenario("even short", "short and alike", (H100_8B,), EVEN, metrics=False),
)
