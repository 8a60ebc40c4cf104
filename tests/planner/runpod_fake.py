"""RunPod's REST API v2 on loopback, driven by its OpenAPI document: every request and every answer is checked against it.

What it does beyond the document, because the live service does: `cmd` and `entrypoint` of a pod and `pagination` of a list
(LIVE_* below), the size limit of a body, data centers that are enforced, a lack of capacity told in prose with status 400.
What it does not cover: clusters, CPU pods, templates, mounts, stopping and restarting, prices that change, lists that lag
behind, the windows of the rate limit (a test sets the headers), logs of the host, and whatever the live service does
otherwise than it says: nothing here was compared with live calls.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from services.kit.settings import Settings
from services.planner.resource_manager.runpod import RunPod
from tests.planner.http_fake import Fault, HttpFake
from tests.planner.openapi import Violation

KEY = "rpa_TESTKEY0123456789"
MOST_BODY = 102_400
NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDkb6kyO0vVSnrAuFXYM3rlzHGm6wMLpvWVYbMrfYnrq planner"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINcpzeEhvZsftQV9tOIHUhcB/jZTA7fkzH1IqUK6s8s6"

# What the live service takes or gives, and the saved document lacks.
LIVE_REQUEST_FIELDS = ("cmd", "entrypoint")
LIVE_QUERY = {("GET", "/v2/pods"): ("cursor",)}


@dataclass
class Gpu:
    id: str = "NVIDIA H100 80GB HBM3"
    name: str = "H100 SXM"
    memory: int = 80
    secure: float = 2.99
    community: float = 2.49
    most: int = 8
    manufacturer: str = "NVIDIA"
    stock: dict[str, str] = field(default_factory=lambda: {"US-KS-2": "HIGH"})

    def document(self, *, availability: bool) -> dict[str, Any]:
        said: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "pool": None,
            "manufacturer": self.manufacturer,
            "memory": self.memory,
            "secure": self.secure > 0,
            "community": self.community > 0,
            "price": {"secure": self.secure, "community": self.community},
            "maxCount": {"secure": self.most, "community": self.most},
        }
        if availability:
            levels = [level for level in self.stock.values() if level != "NONE"]
            said["availability"] = levels[0] if levels else "NONE"
            if levels:
                said["dataCenters"] = [
                    {"id": name, "name": name, "availability": level} for name, level in self.stock.items()
                ]
        return said


class FakeRunPod(HttpFake):
    document = "runpod-rest-v2-openapi.json"
    prefix = "/v2"

    def __init__(self) -> None:
        super().__init__()
        self.gpus = [Gpu()]
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.queries: list[dict[str, str]] = []
        self.page_size = 0
        self._made = 0

    def sent(self, method: str, path: str = "") -> list[Any]:
        return [body for said, where, body in self.requests if said == method and where.startswith(self.prefix + path)]

    def set(self, pod_id: str, status: str, **fields: Any) -> None:
        actions = {"RUNNING": ["stop", "restart", "terminate"], "ERROR": ["start", "terminate"]}
        self.pods[pod_id] |= {"status": status, "actions": actions.get(status, ["terminate"]), **fields}

    async def run(self, pod_id: str, *, sshd: str = "speaks", log: list[str] | None = None) -> int:
        """Its container runs, with an SSH server that `speaks`, is `silent`, or is no SSH server (`http`). The port."""
        greeting = {"speaks": b"SSH-2.0-OpenSSH_9.6\r\n", "silent": b"", "http": b"HTTP/1.1 400 Bad Request\r\n\r\n"}
        port = await self.listen(greeting[sshd])
        self.publish(pod_id, port)
        name = self.pods[pod_id]["name"]
        self.logs[pod_id] = [f"CUDA {name} 0", f"HOSTKEY {name} {HOST_KEY}"] if log is None else log
        return port

    def publish(self, pod_id: str, port: int, *, direct: bool = True) -> None:
        ports = [
            {"private": 8888, "public": 60011, "type": "http", "ip": "100.65.2.3"},
            {"private": 9000, "public": 60012, "type": "tcp", "ip": "127.0.0.1"},
            {"private": 22, "public": port, "type": "tcp", "ip": "127.0.0.1"},
        ]
        endpoint = {"host": "127.0.0.1", "port": port, "username": "root", "command": f"ssh root@127.0.0.1 -p {port}"}
        ssh = self.pods[pod_id]["ssh"] | {"direct": endpoint if direct else None}
        self.set(pod_id, "RUNNING", runtime={"uptime": 5, "ports": ports}, ssh=ssh, startedAt="2026-06-01T12:02:00Z")

    # One request.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        self.requests.append((request.method, request.path, body))
        self.queries.append(dict(request.query))
        fault = self._take_fault(request)
        if fault is not None and not fault.done:
            return await self._break(request, fault, None)
        if request.path.endswith("/logs") and self._refusal(request, raw, body) is None:
            return await self._stream(request)
        status, answer = self._refusal(request, raw, body) or self._act(request, body)
        if fault is not None:
            return await self._break(request, fault, answer)
        return self._answered(request, status, answer)

    def _told(self, fault: Fault) -> tuple[int, Any]:
        return fault.status, _problem(fault.status, fault.detail or "upstream failed")

    def _refusal(self, request: web.Request, raw: bytes, body: Any) -> tuple[int, Any] | None:
        if len(raw) > MOST_BODY:
            return 413, _problem(413, "request body too large")
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return 401, _problem(401, "missing bearer token")
        extra = LIVE_QUERY.get((request.method, request.path), ())
        query = {name: value for name, value in request.query.items() if name not in extra}
        known = {name: value for name, value in body.items() if name not in LIVE_REQUEST_FIELDS} if body else body
        try:
            self.spec.check_request(request.method, request.raw_path.partition("?")[0], query, request.headers, known)
        except Violation as violation:
            self.violations.append(str(violation))
            return 422, _problem(422, "Request validation failed.", [str(violation)])
        return None

    def _answered(
        self, request: web.Request, status: int, answer: Any, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        content = "application/problem+json" if status >= 400 else "application/json"
        self._hold(request, status, answer, content)
        if answer is None:
            return web.Response(status=status, headers=headers)
        return web.json_response(answer, status=status, content_type=content, headers=headers)

    def _act(self, request: web.Request, body: Any) -> tuple[int, Any]:
        match request.method, request.path.split("/")[2:]:
            case "GET", ["catalog", "gpus"]:
                wanted = request.query.get("include") == "AVAILABILITY"
                return 200, {"gpus": [gpu.document(availability=wanted) for gpu in self.gpus]}
            case "GET", ["pods"]:
                return 200, self._page(int(request.query.get("cursor", "0")))
            case "POST", ["pods"]:
                return self._create(body)
            case "GET", ["pods", pod_id] if pod_id in self.pods:
                return 200, self.pods[pod_id]
            case "DELETE", ["pods", pod_id] if pod_id in self.pods:
                if "cluster" in self.pods[pod_id]:
                    return 409, _problem(409, "pod belongs to a cluster")
                del self.pods[pod_id]
                return 204, None
        return 404, _problem(404, "pod not found")

    def _page(self, start: int) -> dict[str, Any]:
        pods = list(self.pods.values())
        if not self.page_size:
            return {"pods": pods}
        end = start + self.page_size
        more = end < len(pods)
        return {
            "pods": pods[start:end],
            "pagination": {"hasNextPage": more, "nextCursor": str(end) if more else None},
        }

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        if ("gpu" in body) == ("cpu" in body):
            return 400, _problem(400, "exactly one of gpu or cpu must be set")
        gpu = next((gpu for gpu in self.gpus if gpu.id == body["gpu"]["id"]), None)
        if gpu is None:
            return 400, _problem(400, f"gpu.id not found: {body['gpu']['id']}")
        count = body["gpu"].get("count", 1)
        places = [name for name, level in gpu.stock.items() if level != "NONE"]
        wanted = [name for name in places if name in (body.get("dataCenterIds") or places)]
        if not wanted or count > gpu.most:
            return 400, _problem(400, NO_CAPACITY)
        self._made += 1
        pod_id = f"pod{self._made:04d}xyz"
        self.pods[pod_id] = _pod(pod_id, body, gpu.secure * count, wanted[0])
        return 201, self.pods[pod_id]

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        pod_id = request.path.split("/")[3]
        if pod_id not in self.pods:
            return self._answered(request, 404, _problem(404, "pod not found"))
        self._hold(request, 200, "", "text/event-stream")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        tail = int(request.query.get("tail", "100"))
        for number, line in enumerate(self.logs.get(pod_id, [])[-tail:]):
            moment = "2026-06-01T12:02:03Z"
            event = json.dumps({"ts": moment, "source": "container", "line": line})
            await response.write(f"id: {moment}/{number:012d}\ndata: {event}\n\n".encode())
        await self._closing.wait()
        return response


@asynccontextmanager
async def fake_runpod(**settings: Any) -> AsyncIterator[tuple[FakeRunPod, RunPod]]:
    """The service and a client of it. Whatever broke the document on the way fails the test, unless it took it from `violations`."""
    async with FakeRunPod().serve() as fake:
        given = {"runpod_api_key": KEY, "runpod_ssh_public_key": PUBLIC_KEY, "runpod_base_url": fake.url} | settings
        provider = RunPod(Settings(**given))
        try:
            yield fake, provider
        finally:
            await provider.close()
        assert fake.violations == []


def _pod(pod_id: str, body: dict[str, Any], cost: float, place: str) -> dict[str, Any]:
    """A pod right after it was made. `args` comes back as it was stored, and taken apart."""
    args = body.get("args", "")
    command = json.loads(args) if args.startswith("{") else {"entrypoint": [], "cmd": args.split()}
    return {
        "id": pod_id,
        "name": body["name"],
        "image": body["image"],
        "args": args,
        "entrypoint": command.get("entrypoint", []),
        "cmd": command.get("cmd", []),
        "disk": body.get("disk", 50),
        "ports": body.get("ports", []),
        "env": body.get("env", {}),
        "registry": None,
        "status": "PROVISIONING",
        "actions": ["stop", "terminate"],
        "mounts": {},
        "gpu": body["gpu"] | {"memory": 188, "vcpuCount": 16},
        "cloud": body.get("cloud", "SECURE"),
        "dataCenterId": place,
        "cudaVersion": None,
        "ssh": {
            "proxy": {
                "host": "ssh.runpod.io",
                "port": 22,
                "username": f"{pod_id}-64411eb2",
                "command": f"ssh {pod_id}-64411eb2@ssh.runpod.io",
            },
            "direct": None,
        },
        "template": None,
        "cost": cost,
        "locked": False,
        "globalNetworking": {"enabled": False},
        "runtime": None,
        "createdAt": "2026-06-01T12:00:00Z",
        "startedAt": None,
    }


def _problem(status: int, detail: str, errors: list[str] | None = None) -> dict[str, Any]:
    problem: dict[str, Any] = {"title": "Refused", "status": status, "detail": detail}
    return problem | ({"errors": errors} if errors else {})
