"""The validator that the fakes rely on: it finds what is wrong, says where, and lets pass what the documents allow."""

from __future__ import annotations

from typing import Any

import pytest
from multidict import MultiDict

from tests.planner.openapi import SPECS, Document, Violation

LAMBDA = Document(SPECS / "lambda-cloud-openapi.json")
RUNPOD = Document(SPECS / "runpod-rest-v2-openapi.json")
KEY = {"Authorization": "Bearer key"}
LAUNCH = "/api/v1/instance-operations/launch"
WANTED = {"region_name": "us-west-1", "instance_type_name": "gpu_1x_a10", "ssh_key_names": ["k"], "name": "aibrix-1"}
POD = {"name": "aibrix-1", "image": "vllm", "gpu": {"id": "NVIDIA H200", "count": 1}}


@pytest.mark.parametrize(
    ("document", "method", "path", "query", "body", "operation"),
    [
        (LAMBDA, "POST", LAUNCH, {}, WANTED, "launchInstance"),
        (LAMBDA, "get", "/api/v1/instances/abc", None, None, "getInstance"),
        (LAMBDA, "GET", "/api/v1/instances", {"cluster_id": "x"}, None, "listInstances"),
        (RUNPOD, "POST", "/v2/pods", {}, POD, "createPod"),
        (RUNPOD, "GET", "/v2/catalog/gpus", {"include": "AVAILABILITY", "product": "POD", "count": "2"}, None, None),
        (RUNPOD, "GET", "/v2/catalog/gpus", MultiDict(include="AVAILABILITY", cloud="SECURE"), None, None),
        (RUNPOD, "GET", "/v2/catalog/gpus/NVIDIA%20H200", {}, None, None),
    ],
)
def test_what_the_documents_allow(
    document: Document, method: str, path: str, query: Any, body: Any, operation: str | None
) -> None:
    found = document.check_request(method, path, query, KEY, body)
    assert operation in (None, found)


@pytest.mark.parametrize(
    ("document", "method", "path", "query", "headers", "body", "says"),
    [
        (LAMBDA, "GET", "/api/v1/nothing", {}, KEY, None, "no such path"),
        (LAMBDA, "DELETE", "/api/v1/instances", {}, KEY, None, "no such method"),
        (LAMBDA, "GET", "/api/v1/instances", {"clusterid": "x"}, KEY, None, "'clusterid'"),
        (LAMBDA, "GET", "/api/v1/instances", [("cluster_id", "x"), ("cluster_id", "y")], KEY, None, "2 times"),
        (LAMBDA, "GET", "/api/v1/instances", {}, {}, None, "Authorization"),
        (LAMBDA, "GET", "/api/v1/instances", {}, {"authorization": "Bearer "}, None, "Authorization"),
        (LAMBDA, "GET", "/api/v1/instances", {}, {"authorization": "Token x"}, None, "Authorization"),
        (LAMBDA, "GET", "/api/v1/instances", {}, KEY, {}, "a body was sent"),
        (LAMBDA, "POST", LAUNCH, {}, KEY, None, "a body is required"),
        (LAMBDA, "POST", LAUNCH, {}, KEY, {**WANTED, "quantity": 1}, "'quantity'"),
        (LAMBDA, "POST", LAUNCH, {}, KEY, {**WANTED, "name": "x" * 65}, r"\$\.name"),
        (LAMBDA, "POST", LAUNCH, {}, KEY, {**WANTED, "ssh_key_names": "k"}, r"\$\.ssh_key_names"),
        (LAMBDA, "POST", LAUNCH, {}, KEY, {**WANTED, "tags": [{"key": "A", "value": "v"}]}, r"\$\.tags\[0\]\.key"),
        (LAMBDA, "POST", LAUNCH, {}, KEY, {"region_name": "us-west-1"}, "'instance_type_name' is a required"),
        (RUNPOD, "POST", "/v2/pods", {}, KEY, {**POD, "interruptible": True}, "'interruptible'"),
        (RUNPOD, "POST", "/v2/pods", {}, KEY, {**POD, "gpu": {"id": "x", "count": 0}}, r"\$\.gpu"),
        (RUNPOD, "GET", "/v2/pods/abc/logs", {"tail": "5001"}, KEY, None, "tail"),
        (RUNPOD, "GET", "/v2/pods/abc/logs", {"tail": "all"}, KEY, None, "tail"),
        (RUNPOD, "GET", "/v2/pods/abc/logs", {"source": "kernel"}, KEY, None, "source"),
        (RUNPOD, "GET", "/v2/catalog/gpus", {"include": "EVERYTHING"}, KEY, None, "include"),
    ],
)
def test_a_wrong_request_is_named_by_place(
    document: Document, method: str, path: str, query: Any, headers: dict[str, str], body: Any, says: str
) -> None:
    with pytest.raises(Violation, match=says):
        document.check_request(method, path, query, headers, body)


@pytest.mark.parametrize(
    ("document", "method", "path", "status", "body", "content"),
    [
        (LAMBDA, "POST", LAUNCH, 200, {"data": {"instance_ids": ["a"]}}, ""),
        (LAMBDA, "GET", "/api/v1/instances", 200, {"data": []}, "application/json; charset=utf-8"),
        (LAMBDA, "GET", "/api/v1/instances/a", 404, {"error": {"code": "global/object-does-not-exist", "message": "m"}}, ""),
        (RUNPOD, "DELETE", "/v2/pods/abc", 204, None, ""),
        (RUNPOD, "GET", "/v2/pods", 200, {"pods": []}, "application/json"),
        (RUNPOD, "GET", "/v2/pods/abc/logs", 200, "data: {}\n\n", "text/event-stream"),
    ],
)  # fmt: skip
def test_answers_that_the_documents_allow(
    document: Document, method: str, path: str, status: int, body: Any, content: str
) -> None:
    document.check_response(method, path, status, body, content)


@pytest.mark.parametrize(
    ("document", "method", "path", "status", "body", "content", "says"),
    [
        (LAMBDA, "POST", LAUNCH, 500, {}, "", "status 500 is not one of"),
        (LAMBDA, "POST", LAUNCH, 200, None, "", "a body is missing"),
        (LAMBDA, "POST", LAUNCH, 200, {"data": {"instance_ids": [1]}}, "", r"\$\.data\.instance_ids\[0\]"),
        (LAMBDA, "POST", LAUNCH, 200, {"data": {"instance_ids": []}, "more": 1}, "", "'more'"),
        (LAMBDA, "POST", LAUNCH, 400, {"error": {"code": "global/quota-exceeded", "message": "m"}}, "", "suggestion"),
        (LAMBDA, "GET", "/api/v1/instances", 200, {"data": [{}]}, "", "'id' is a required"),
        (LAMBDA, "GET", "/api/v1/instances", 200, {"data": []}, "text/plain", "content type text/plain"),
        (RUNPOD, "DELETE", "/v2/pods/abc", 204, {}, "", "a body came"),
        (RUNPOD, "GET", "/v2/pods", 200, {"pods": [{}]}, "", r"\$\.pods\[0\]"),
    ],
)
def test_a_wrong_answer_is_named_by_place(
    document: Document, method: str, path: str, status: int, body: Any, content: str, says: str
) -> None:
    with pytest.raises(Violation, match=says):
        document.check_response(method, path, status, body, content)
