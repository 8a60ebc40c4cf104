"""The Informer against an emulated API server that breaks, forgets, falls silent and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from services.kit.clock import monotonic
from services.kit.kubernetes import api as api_module
from services.kit.kubernetes import watch as module
from services.kit.kubernetes.api import Api
from services.kit.kubernetes.errors import ApiError, NoCredentials, Refused, Unavailable
from services.kit.kubernetes.watch import Informer
from services.kit.lifecycle import background
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.faults import Fault


def pod(name: str, label: str = "x") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "batch", "labels": {"app": label}}, "spec": {}}


class Following:
    """An Informer that runs, and what it told."""

    def __init__(self, api: Api, **selecting: str) -> None:
        self.told: list[tuple[str, str]] = []
        self.news = asyncio.Event()
        self.informer = Informer(api, "pods", "batch", on_change=self._tell, **selecting)

    def _tell(self, kind: str, found: dict[str, Any]) -> None:
        self.told.append((kind, found["metadata"]["name"]))
        self.news.set()

    def names(self) -> list[str]:
        return sorted(name for _, name in self.informer.items)

    async def until(self, told: Callable[[], bool]) -> None:
        """A condition on what no event of ours goes with is looked at again and again."""
        async with asyncio.timeout(20):
            while not told():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(api: Api, **selecting: str) -> AsyncIterator[Following]:
    made = Following(api, **selecting)
    async with background(made.informer.run()):
        async with asyncio.timeout(20):
            await made.informer.synced.wait()
        yield made


def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that goes wrong from now on."""
    failures: list[str] = []
    real = Informer._failed

    def failed(self: Informer, error: ApiError) -> float:
        failures.append(error.message)
        return real(self, error)

    monkeypatch.setattr(Informer, "_failed", failed)
    return failures


async def test_what_is_there_and_what_happens(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod("a"))
    async with following(api) as here:
        assert here.told == [("ADDED", "a")]
        cluster.put("pods", pod("b"))
        cluster.patch("pods", "batch", "a", {"status": {"phase": "Running"}})
        cluster.remove("pods", "batch", "b")
        await here.until(lambda: len(here.told) == 4)
        assert here.told[1:] == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
        assert here.informer.items["batch", "a"] == cluster.get("pods", "batch", "a")
        assert (here.informer.stale_since, here.informer.error) == (None, None)
    assert [one.query.get("watch") for one in cluster.asked] == [None, "true"]
    assert cluster.asked[1].query["timeoutSeconds"] == "40"


async def test_only_what_is_selected(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod("a"))
    cluster.put("pods", pod("b", "y"))
    async with following(api, selector="app=x") as here:
        cluster.patch("pods", "batch", "b", {"metadata": {"labels": {"app": "x"}}})
        cluster.patch("pods", "batch", "a", {"metadata": {"labels": {"app": "y"}}})
        await here.until(lambda: len(here.told) == 3)
        assert here.told == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]
    async with following(api, field="metadata.name=b") as here:
        assert here.names() == ["b"]


@pytest.mark.parametrize("how", ["break_watches", "end_watches"])
async def test_it_resumes_where_it_was(cluster: Cluster, api: Api, how: str) -> None:
    cluster.put("pods", pod("a"))
    cluster.put("pods", pod("b"))
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        cluster.bookmark()
        getattr(cluster, how)()
        cluster.remove("pods", "batch", "a")
        cluster.put("pods", pod("c"))
        await here.until(lambda: here.names() == ["b", "c"])
        assert here.told == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("ADDED", "c")]
        await here.until(lambda: here.informer.error is None and here.informer.stale_since is None)
    assert [one.is_watch for one in cluster.asked][:3] == [False, True, True]


@pytest.mark.parametrize("expires_as", ["event", "status"])
async def test_410_is_a_new_list_that_tells_what_disappeared(cluster: Cluster, api: Api, expires_as: Any) -> None:
    cluster.expires_as = expires_as
    for name in "abc":
        cluster.put("pods", pod(name))
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        down = cluster.fail(Fault(503), times=1, is_watch=True)
        cluster.break_watches()
        cluster.remove("pods", "batch", "a")
        cluster.remove("pods", "batch", "b")
        cluster.put("pods", pod("b"))  # another one of that name
        cluster.patch("pods", "batch", "c", {"status": {"phase": "Running"}})
        cluster.compact()
        cluster.put("pods", pod("d"))
        await here.until(lambda: here.names() == ["b", "c", "d"] and here.informer.error is None)
        assert down.met
        assert here.told[3:] == [
            ("DELETED", "a"),
            ("DELETED", "b"),
            ("ADDED", "b"),
            ("MODIFIED", "c"),
            ("ADDED", "d"),
        ]
        assert here.informer.items["batch", "b"] == cluster.get("pods", "batch", "b")


async def test_410_in_the_middle_of_a_watch(cluster: Cluster, api: Api) -> None:
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        lists = len([one for one in cluster.asked if not one.is_watch])
        cluster.fail_watches(410, "too old resource version", "Expired")
        await here.until(lambda: len([one for one in cluster.asked if not one.is_watch]) > lists)
        cluster.put("pods", pod("a"))
        await here.until(lambda: here.names() == ["a"])


@pytest.mark.parametrize(
    "data",
    [
        b"<html>\n",
        b'{"type": "ADDED"}\n',
        b'{"type": "ODD", "object": {}}\n',
        b'{"type": "ADDED", "object": {}}\n',
        b"[]\n",
    ],
)
async def test_garbage_is_not_taken_over(cluster: Cluster, api: Api, data: bytes) -> None:
    cluster.put("pods", pod("a"))
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        cluster.send_to_watches(data)
        await here.until(lambda: len(cluster.asked) >= 3)
        cluster.put("pods", pod("b"))
        await here.until(lambda: here.names() == ["a", "b"])
        assert here.told == [("ADDED", "a"), ("ADDED", "b")]


async def test_events_that_come_in_pieces(cluster: Cluster, api: Api) -> None:
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        made = {**pod("é" * 10), "big": "x" * 3_000_000}
        made["metadata"] |= {"resourceVersion": "1001", "uid": "u"}
        data = orjson.dumps({"type": "ADDED", "object": made}) + b"\n\n"
        for start in range(0, len(data), 700_001):
            cluster.send_to_watches(data[start : start + 700_001])
        await here.until(lambda: here.names() == ["é" * 10])
        assert here.informer.items["batch", "é" * 10] == made


async def test_a_silent_connection_is_noticed(cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 1)
    monkeypatch.setattr(api_module, "GRACE_S", 0.2)
    failures = failing(monkeypatch)
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        silent = monotonic()
        cluster.silence_watches()
        cluster.put("pods", pod("a"))
        await here.until(lambda: here.names() == ["a"])
        assert 0.9 < monotonic() - silent < 10
    assert failures == ["the Kubernetes API went silent during a watch"]


async def test_too_many_requests_are_paused_as_long_as_is_asked(cluster: Cluster, api: Api) -> None:
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        cluster.fail(Fault(429, "TooManyRequests", retry_after=1), is_watch=True)
        began = monotonic()
        cluster.break_watches()
        cluster.put("pods", pod("a"))
        await here.until(lambda: here.names() == ["a"])
        assert monotonic() - began >= 1.0


async def test_new_credentials(cluster: Cluster, api: Api) -> None:
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        cluster.rotate()
        cluster.break_watches()
        cluster.put("pods", pod("a"))
        await here.until(lambda: here.names() == ["a"])
        assert cluster.connects == 2


async def test_an_outage_is_told_since_when_and_keeps_the_last_state(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod("a"))
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
        heard = monotonic()
        outage = cluster.fail(Fault(500), times=10**6)
        cluster.break_watches()
        await here.until(lambda: len(outage.met) >= 5)
        assert isinstance(here.informer.error, Unavailable)
        assert here.informer.stale_since is not None
        assert here.informer.stale_since <= monotonic()
        assert heard - 5 < here.informer.stale_since
        assert here.names() == ["a"]
        # After some failures it does not trust its version any more.
        assert not outage.met[-1].is_watch
        cluster.planned.clear()
        cluster.put("pods", pod("b"))
        await here.until(lambda: here.names() == ["a", "b"] and here.informer.error is None)
        assert here.told == [("ADDED", "a"), ("ADDED", "b")]


async def test_what_is_refused_is_asked_again(cluster: Cluster, api: Api) -> None:
    cluster.fail(Fault(403, "Forbidden", "pods is forbidden"), times=5)
    made = Following(api)
    async with background(made.informer.run()):
        await made.until(lambda: made.informer.error is not None)
        assert isinstance(made.informer.error, Refused)
        assert not made.informer.synced.is_set()
        assert made.informer.stale_since is not None
        await made.until(made.informer.synced.is_set)
        assert made.informer.error is None


async def test_credentials_that_come_later(cluster: Cluster) -> None:
    calls = 0

    async def connect() -> tuple[Any, str]:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise NoCredentials("there are none")
        return await cluster.connect()

    api = Api(connect)
    async with following(api) as here:
        assert (calls, here.informer.error) == (4, None)
    await api.close()


async def test_watches_that_end_at_once_are_not_begun_in_a_loop(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = failing(monkeypatch)
    cluster.fail(Fault(raw=b""), times=3, is_watch=True)
    async with following(api) as here:
        cluster.put("pods", pod("a"))
        await here.until(lambda: here.names() == ["a"])
    assert failures == ["the Kubernetes API ends watches as soon as they begin"] * 3


async def test_what_a_callback_raises_ends_it(cluster: Cluster, api: Api) -> None:
    def broken(kind: str, found: object) -> None:
        raise LookupError(kind)

    cluster.put("pods", pod("a"))
    with pytest.raises(LookupError):
        await Informer(api, "pods", "batch", on_change=broken).run()


async def test_cancelled_it_leaves_no_connection(cluster: Cluster, api: Api) -> None:
    async with following(api) as here:
        await here.until(lambda: bool(cluster.watches))
    cluster.bookmark()
    await here.until(lambda: not cluster.watches)


async def test_thousands_of_objects(cluster: Cluster, api: Api) -> None:
    for number in range(1200):
        cluster.put("pods", pod(f"p-{number}"))
    async with following(api) as here:
        assert len(here.informer.items) == len(here.told) == 1200
        assert len(cluster.asked) >= 3
