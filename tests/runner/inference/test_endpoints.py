"""Who gets the next request, and who rests."""

from __future__ import annotations

import asyncio
from collections import Counter

from services.kit.lifecycle import background
from services.runner.inference.endpoints import DROPS, EndpointPool, Engine
from services.runner.inference.limit import Fixed
from services.runner.inference.limiter import Limiter
from services.runner.inference.outcome import Kind, Outcome
from services.runner.runtimes.base import Endpoint

OK = Outcome(Kind.OK)


def a_pool(count: int, limit: int = 4) -> EndpointPool:
    pool = EndpointPool(lambda: Fixed(limit), lambda: None)
    pool.replace([Endpoint(base_url=f"http://engine-{number}") for number in range(count)])
    return pool


def enter(limiter: Limiter) -> tuple[Engine, int]:
    engine = limiter.find()
    assert engine is not None
    return engine, limiter.enter(engine)


def test_requests_are_spread_evenly_and_the_least_loaded_is_next() -> None:
    pool = a_pool(3)
    limiter = Limiter(pool, 100)
    entered = [enter(limiter) for _ in range(9)]
    assert set(Counter(engine.endpoint.base_url for engine, _ in entered).values()) == {3}
    free, sent = entered[4]
    limiter.leave(free, sent, OK)
    assert limiter.find() is free


def test_equals_take_turns() -> None:
    pool = a_pool(3)
    limiter = Limiter(pool, 100)
    seen = []
    for _ in range(6):
        engine, sent = enter(limiter)
        seen.append(engine.endpoint.base_url)
        limiter.leave(engine, sent, OK)
    assert seen[:3] == seen[3:]
    assert len(set(seen)) == 3


def test_the_cap_holds_over_all_endpoints_and_each_limit_over_its_own() -> None:
    limiter = Limiter(a_pool(3), 5)
    for _ in range(5):
        enter(limiter)
    assert limiter.find() is None
    assert limiter.limit() == 5
    small = Limiter(a_pool(2, limit=1), 100)
    for _ in range(2):
        enter(small)
    assert small.find() is None
    assert small.limit() == 2


def test_a_refused_connection_takes_an_endpoint_out_and_drops_do_in_a_row() -> None:
    pool = a_pool(2)
    limiter = Limiter(pool, 100)
    engine, sent = enter(limiter)
    limiter.leave(engine, sent, Outcome(Kind.REFUSED))
    assert not engine.healthy
    assert pool.alarm.is_set()
    other = next(found for found in pool.engines if found.healthy)
    for _ in range(DROPS - 1):
        pool.settle(other, 1, Outcome(Kind.DISCONNECTED))
    pool.settle(other, 1, OK)
    for _ in range(DROPS - 1):
        pool.settle(other, 1, Outcome(Kind.DISCONNECTED))
    assert other.healthy
    pool.settle(other, 1, Outcome(Kind.DISCONNECTED))
    assert not pool.any_healthy
    assert limiter.find() is None


def test_statuses_and_timeouts_take_nobody_out() -> None:
    pool = a_pool(1)
    for _ in range(100):
        pool.settle(pool.engines[0], 1, Outcome(Kind.HTTP_ERROR, status=500))
        pool.settle(pool.engines[0], 1, Outcome(Kind.TIMEOUT))
    assert pool.any_healthy


def test_a_changed_list_keeps_those_that_stay() -> None:
    pool = a_pool(2)
    stays, goes = pool.engines
    stays.in_flight = 3
    pool.replace([Endpoint(base_url="http://new"), Endpoint(base_url="http://engine-0")])
    assert stays in pool.engines
    assert goes not in pool.engines
    assert pool.pick() is not stays


async def test_a_probe_brings_it_back() -> None:
    changed = asyncio.Event()
    pool = EndpointPool(lambda: Fixed(4), changed.set)
    pool.replace([Endpoint(base_url="http://engine")])
    answers = iter([False, False, True])

    async def check(engine: Engine) -> bool:
        return next(answers)

    async with background(pool.watch(check)), asyncio.timeout(5):
        pool.settle(pool.engines[0], 1, Outcome(Kind.REFUSED))
        assert not pool.any_healthy
        while not pool.any_healthy:
            changed.clear()
            await changed.wait()
    assert next(answers, None) is None
