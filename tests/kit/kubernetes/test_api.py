"""Calls of the Kubernetes API through the official client, against an emulated API server that fails as real ones do."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from services.kit.kubernetes import api as module
from services.kit.kubernetes.api import Api
from services.kit.kubernetes.errors import AlreadyThere, ApiError, NoCredentials, Refused, Unavailable
from services.kit.kubernetes.requests import error_of_event
from tests.conftest import free_port
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.faults import Fault


def pod(name: str = "a", **metadata: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "engine", "image": "x"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}


async def test_an_object_from_birth_to_death(cluster: Cluster, api: Api) -> None:
    assert api.namespace == ""
    assert await api.open() == api.namespace == "batch"
    made = await api.create("pods", "batch", pod(labels={"app": "x"}))
    assert made == cluster.get("pods", "batch", "a") == await api.read("pods", "batch", "a")
    assert made["spec"]["containers"] == [{"name": "engine", "image": "x"}]
    changed = await api.patch("pods", "batch", "a", {"metadata": {"labels": {"app": None, "new": "1"}}})
    assert changed is not None
    assert changed["metadata"]["labels"] == {"new": "1"}
    with pytest.raises(AlreadyThere, match='pods "a" already exists'):
        await api.create("pods", "batch", pod())
    assert await api.delete("pods", "batch", "a", uid=made["metadata"]["uid"])
    assert not await api.delete("pods", "batch", "a")
    assert await api.read("pods", "batch", "a") is None
    assert await api.patch("pods", "batch", "a", {}) is None
    assert {one.headers["User-Agent"] != "" for one in cluster.asked} == {True}
    assert cluster.asked[-3].body["propagationPolicy"] == "Foreground"
    assert cluster.connects == 1


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        ("deployments.apps", "/apis/apps/v1/namespaces/batch/deployments/a"),
        ("jobs.batch", "/apis/batch/v1/namespaces/batch/jobs/a"),
        ("endpointslices.discovery.k8s.io", "/apis/discovery.k8s.io/v1/namespaces/batch/endpointslices/a"),
        ("services", "/api/v1/namespaces/batch/services/a"),
    ],
)
async def test_groups_have_their_paths(cluster: Cluster, api: Api, resource: str, path: str) -> None:
    made = await api.create(resource, "batch", {"metadata": {"name": "a"}})
    assert await api.read(resource, "batch", "a") == made
    assert cluster.asked[-1].path == path
    assert ((await api.list(resource, "batch"))[0]) == [made]


async def test_what_has_no_namespace(api: Api) -> None:
    found = await api.read("namespaces", "", "batch")
    assert found is not None
    assert found["status"] == {"phase": "Active"}
    assert [one["metadata"]["name"] for one in (await api.list("namespaces", ""))[0]] == ["batch", "other"]


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_name_leads_nowhere_else(cluster: Cluster, api: Api, name: str) -> None:
    with pytest.raises(ValueError, match="no name of an object"):
        await api.delete("pods", "batch", name)
    assert await api.read("pods", "batch", "a/../../b?x=1") is None
    assert cluster.asked[-1].query == {}


async def test_a_name_of_another_object_is_gone(cluster: Cluster, api: Api) -> None:
    made = await api.create("pods", "batch", pod())
    assert not await api.delete("pods", "batch", "a", uid="of-another")
    assert cluster.get("pods", "batch", "a") == made


async def test_a_conflict_on_our_own_object_is_tried_again(cluster: Cluster, api: Api) -> None:
    made = await api.create("pods", "batch", pod())
    cluster.fail(Fault(409, "Conflict", "the object has been modified"), times=2, method="DELETE")
    assert await api.delete("pods", "batch", "a", uid=made["metadata"]["uid"])
    assert cluster.get("pods", "batch", "a") is None


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
async def test_conflicts_are_tried_again_but_not_for_ever(cluster: Cluster, api: Api, method: str) -> None:
    """A creation has one if the quota of its namespace was changed meanwhile."""
    cluster.put("pods", pod())
    calls = {
        "POST": lambda: api.create("pods", "batch", pod("b")),
        "PATCH": lambda: api.patch("pods", "batch", "a", {"metadata": {"labels": {"x": "1"}}}),
        "DELETE": lambda: api.delete("pods", "batch", "a"),
    }
    fault = Fault(409, "Conflict", "Operation cannot be fulfilled: the object has been modified")
    cluster.fail(fault, times=100, method=method)
    with pytest.raises(Refused, match="the object has been modified") as refused:
        await calls[method]()
    assert (refused.value.status, refused.value.reason, len(cluster.asked)) == (409, "Conflict", 6)
    cluster.planned.clear()
    cluster.fail(fault, times=2, method=method)
    assert await calls[method]()


async def test_a_patch_of_a_known_state_is_not_tried_again(cluster: Cluster, api: Api) -> None:
    made = cluster.put("pods", pod())
    cluster.patch("pods", "batch", "a", {"status": {"phase": "Running"}})
    stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"], "labels": {"x": "1"}}}
    with pytest.raises(Refused) as refused:
        await api.patch("pods", "batch", "a", stale)
    assert (refused.value.status, len(cluster.asked)) == (409, 1)


@pytest.mark.parametrize("fault", [Fault(loses=True), Fault(status=504, reason="Timeout"), Fault(raw=b"<html>")])
async def test_a_creation_whose_answer_was_lost_is_looked_at_by_its_caller(
    cluster: Cluster, api: Api, fault: Fault
) -> None:
    if not fault.loses:
        cluster.put("pods", pod())
    cluster.fail(fault, method="POST")
    with pytest.raises(AlreadyThere):
        await api.create("pods", "batch", pod())
    assert cluster.get("pods", "batch", "a") is not None


async def test_a_generated_name_is_not_made_twice(cluster: Cluster, api: Api) -> None:
    body = {"metadata": {"generateName": "a-"}, "spec": {}}
    cluster.fail(Fault(loses=True), method="POST")
    with pytest.raises(Unavailable):
        await api.create("pods", "batch", body)
    assert len(cluster.all("pods")) == 1
    cluster.fail(Fault(429), method="POST")
    assert (await api.create("pods", "batch", body))["metadata"]["name"].startswith("a-")


@pytest.mark.parametrize(
    "fault",
    [Fault(500), Fault(503), Fault(429), Fault(drops=True), Fault(raw=b"{"), Fault(raw=b"[]"), Fault(408)],
)
async def test_what_may_pass_is_tried_again(cluster: Cluster, api: Api, fault: Fault) -> None:
    made = cluster.put("pods", pod())
    cluster.fail(fault, times=3)
    assert await api.read("pods", "batch", "a") == made


async def test_retry_after_is_honoured(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod())
    cluster.fail(Fault(429, "TooManyRequests", retry_after=1))
    began = time.monotonic()
    assert await api.read("pods", "batch", "a")
    assert 1.0 <= time.monotonic() - began < 5
    cluster.fail(Fault(503, retry_after=60))
    began = time.monotonic()
    with pytest.raises(Unavailable) as failed:
        await api.read("pods", "batch", "a", timeout=5)
    assert (failed.value.retry_after, failed.value.status) == (60.0, 503)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(500, "InternalError", 'failed calling webhook "x"'), 'answers 500: failed calling webhook "x"'),
        (Fault(drops=True), "does not answer: ServerDisconnectedError"),
        (Fault(hangs=True), "does not answer: TimeoutError"),
        (Fault(raw=b"<html>"), "answers something that is no object"),
    ],
)
async def test_the_deadline_holds(cluster: Cluster, api: Api, fault: Fault, message: str) -> None:
    cluster.fail(fault, times=10**6)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=message) as failed:
        await api.read("pods", "batch", "a", timeout=0.3)
    assert time.monotonic() - began < 3
    assert cluster.token not in str(failed.value)


async def test_an_answer_that_does_not_come_is_asked_for_again(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_S", 0.2)
    made = cluster.put("pods", pod())
    cluster.fail(Fault(hangs=True))
    assert await api.read("pods", "batch", "a") == made


async def test_nobody_is_there(cluster: Cluster, api: Api) -> None:
    cluster.url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match="does not answer: ClientConnectorError"):
        await api.read("pods", "batch", "a", timeout=0.2)


async def test_new_credentials_are_fetched_once_for_all(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod())
    assert await api.read("pods", "batch", "a")
    cluster.rotate()
    found = await asyncio.gather(*(api.read("pods", "batch", "a") for _ in range(10)))
    assert all(found)
    assert cluster.connects == 2


async def test_credentials_that_are_not_accepted(cluster: Cluster, api: Api) -> None:
    cluster.fail(Fault(401, "Unauthorized", "Unauthorized"), times=100)
    with pytest.raises(Refused, match="its credentials are not accepted") as refused:
        await api.read("pods", "batch", "a")
    assert (refused.value.status, cluster.connects) == (401, 2)
    assert cluster.token not in repr(refused.value)


async def test_no_credentials() -> None:
    async def connect() -> tuple[Any, str]:
        raise NoCredentials("there are none")

    with pytest.raises(NoCredentials):
        await Api(connect).list("pods", "batch")


@pytest.mark.parametrize(
    ("body", "namespace", "status", "message"),
    [
        (pod(), "batch", 403, "exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1"),
        (pod(), "nowhere", 404, 'namespaces "nowhere" not found'),
        (pod("Not_A_Name"), "batch", 422, "metadata.name: Invalid value"),
        (pod(namespace="other"), "batch", 400, "does not match the namespace"),
    ],
)
async def test_a_refusal_says_why_in_the_words_of_the_api(
    cluster: Cluster, api: Api, body: dict[str, Any], namespace: str, status: int, message: str
) -> None:
    cluster.put("pods", pod("there"))
    cluster.put("resourcequotas", {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}})
    if status != 403:
        cluster.remove("resourcequotas", "batch", "small")
    with pytest.raises(Refused) as refused:
        await api.create("pods", namespace, body)
    assert message in refused.value.message
    assert (refused.value.status, len(cluster.asked)) == (status, 1)


def test_messages_are_bounded_lines() -> None:
    error = error_of_event({"kind": "Status", "code": 403, "message": "a\nb\x1b[31m " + "x" * 5000})
    assert error.message.startswith("the Kubernetes API answers 403: a b[31m xxx")
    assert len(error.message) < 1100
    unknown = error_of_event({"details": {"retryAfterSeconds": 7}})
    assert isinstance(unknown, Unavailable)
    assert (unknown.status, unknown.retry_after) == (500, 7.0)


async def test_a_long_list_comes_in_pages(cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 10)
    for number in range(95):
        cluster.put("pods", pod(f"p-{number:03}", labels={"even": str(number % 2 == 0)}))
    found, version = await api.list("pods", "batch")
    assert (len(found), version, len(cluster.asked)) == (95, str(cluster.store.version), 10)
    assert found == cluster.all("pods", "batch")
    even, _ = await api.list("pods", "", selector="even=True")
    assert len(even) == 48
    one, _ = await api.list("pods", "batch", field="metadata.name=p-007")
    assert [item["metadata"]["name"] for item in one] == ["p-007"]


async def test_a_list_that_expires_in_the_middle_begins_again(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    for number in range(5):
        cluster.put("pods", pod(f"p-{number}"))
    real, calls = cluster._list, 0

    def listed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            cluster.remove("pods", "batch", "p-0")
            cluster.compact()
        return real(*args)

    monkeypatch.setattr(cluster, "_list", listed)
    found, version = await api.list("pods", "batch")
    assert [one["metadata"]["name"] for one in found] == ["p-1", "p-2", "p-3", "p-4"]
    assert (version, calls) == (str(cluster.store.version), 4)
    cluster.fail(Fault(410, "Expired"), times=100)
    with pytest.raises(Unavailable, match="faster than it can be read"):
        await api.list("pods", "batch")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"items": 7}',
        b'{"items": [1]}',
        b'{"items": [{"metadata": {}}]}',
        b'{"metadata": 7}',
        b"{}",
        b'{"items": [], "metadata": 7}',
    ],
)
async def test_what_is_no_list(cluster: Cluster, api: Api, raw: bytes) -> None:
    cluster.fail(Fault(raw=raw), times=100)
    with pytest.raises(Unavailable, match="something that is no list of pods"):
        await api.list("pods", "batch")


async def test_logs(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod())
    cluster.texts["batch", "a", "engine", False] = "one\ntwo\nthré\n"
    cluster.texts["batch", "a", "engine", True] = "before\n"
    assert await api.logs("batch", "a", "engine", lines=2, limit_bytes=1000) == "two\nthré\n"
    assert await api.logs("batch", "a", "engine", lines=9, limit_bytes=5) == "one\nt"
    assert await api.logs("batch", "a", "engine", lines=9, limit_bytes=99, previous=True) == "before\n"
    assert await api.logs("batch", "a", "other", lines=9, limit_bytes=99) == ""
    assert await api.logs("batch", "gone", "engine", lines=9, limit_bytes=99) == ""
    cluster.fail(Fault(403, "Forbidden", "no pods/log for you"))
    with pytest.raises(Refused, match="no pods/log for you"):
        await api.logs("batch", "a", "engine", lines=9, limit_bytes=99)


async def test_a_cancelled_call_leaves_the_connection_usable(cluster: Cluster, api: Api) -> None:
    cluster.put("pods", pod())
    cluster.fail(Fault(hangs=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await api.read("pods", "batch", "a")
    assert await api.read("pods", "batch", "a")
    await api.close()
    assert await api.read("pods", "batch", "a")


def test_errors_are_of_one_family() -> None:
    assert all(issubclass(kind, ApiError) for kind in (AlreadyThere, NoCredentials, Refused, Unavailable))
