"""Lambda Cloud on loopback, driven by its OpenAPI document: every request and every answer is checked against it.

What it does beyond the document, because the live service does: answers 429 to who hurries, an unknown error to a second
terminate, and shows terminated instances no more. What it does not cover: file systems, clusters, firewalls, images.
Nothing here was compared with live calls.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from services.kit.settings import Settings
from services.planner.resource_manager.lambda_cloud import LambdaCloud
from tests.planner.http_fake import Fault, HttpFake
from tests.planner.openapi import Violation

KEY = "secret_planner_0123456789abcdef.TESTKEY"
MESSAGES = {
    "instance-operations/launch/insufficient-capacity": "Not enough capacity to fulfill launch request.",
    "global/object-does-not-exist": "Specified instance does not exist.",
}


class VirtualClock:
    """Time passes when everybody sleeps, and by the turn of a test."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._driver: asyncio.Task[None] | None = None

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time + seconds, self._count, woken))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        await woken

    async def _drive(self) -> None:
        while self._sleepers:
            for _ in range(5):
                await asyncio.sleep(0)
            at, _, woken = heapq.heappop(self._sleepers)
            self.time = max(self.time, at)
            if not woken.done():
                woken.set_result(None)


@dataclass
class Kind:
    """An instance type."""

    description: str
    gpus: int
    cents: int
    regions: list[str] = field(default_factory=list)

    def document(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "description": f"{self.gpus}x {self.description}",
            "gpu_description": self.description,
            "price_cents_per_hour": self.cents,
            "specs": {"vcpus": 26, "memory_gib": 200, "storage_gib": 1024, "gpus": self.gpus},
        }


class FakeLambda(HttpFake):
    document = "lambda-cloud-openapi.json"
    prefix = "/api/v1"

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.ssh_port = 0
        self.kinds = {
            "gpu_1x_a10": Kind("A10 (24 GB PCIe)", 1, 129, ["us-west-1", "us-east-1"]),
            "gpu_1x_h100_sxm5": Kind("H100 (80 GB SXM5)", 1, 429, ["us-east-1"]),
            "gpu_8x_a100": Kind("A100 (40 GB SXM4)", 8, 1592, []),
        }
        self.instances: dict[str, dict[str, Any]] = {}
        self.times: list[tuple[str, float]] = []
        """When, by the clock, requests came, with their paths below /api/v1."""
        self.hurried = 0
        """Requests that came before the account's limits allowed them."""
        self.ssh_keys = ["planner"]

    # What a test does.

    def set(self, id: str, status: str, **fields: Any) -> None:
        self.instances[id].update(fields, status=status)

    def run(self, id: str) -> None:
        self.set(id, "active", ip="127.0.0.1")

    def end(self, id: str) -> None:
        """What Lambda does with a terminating instance after a while."""
        del self.instances[id]

    def add(self, name: str | None, status: str = "active", **fields: Any) -> str:
        """An instance that somebody else made."""
        return self._make(
            "us-west-1", "gpu_1x_a10", {"name": name} if name is not None else {}, status=status, **fields
        )

    def sent(self, path: str) -> list[Any]:
        """Bodies of the requests to a path below /api/v1."""
        return [body for _, asked, body in self.requests if asked == self.prefix + path]

    # One request.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        path = request.path.removeprefix(self.prefix)
        self.requests.append((request.method, request.path, body))
        if (hurry := self._hurry(path)) is not None:
            return hurry
        self.times.append((path, self.clock.now()))
        fault = self._take_fault(request)
        if fault is not None and not fault.done and fault.change is None:
            return await self._break(request, fault, None)
        status, answer = self._refusal(request, body) or self._act(request.method, path, body)
        if fault is not None:
            return await self._break(request, fault, answer)
        return self._answered(request, status, answer)

    def _hurry(self, path: str) -> web.Response | None:
        """Limits as the document has them: a request a second, and a launch in 12."""
        launch = "/instance-operations/launch"
        last = max((at for _, at in self.times), default=-1000.0)
        last_launch = max((at for asked, at in self.times if asked == launch), default=-1000.0)
        now = self.clock.now()
        if now - last >= 1 and (path != launch or now - last_launch >= 12):
            return None
        self.hurried += 1
        return web.Response(status=429, text="slow down")

    def _told(self, fault: Fault) -> tuple[int, Any] | None:
        return problem(fault.status, fault.code, fault.detail) if fault.code else None

    def _refusal(self, request: web.Request, body: Any) -> tuple[int, Any] | None:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return problem(401, "global/invalid-api-key")
        try:
            path = request.raw_path.partition("?")[0]
            self.spec.check_request(request.method, path, request.query.items(), request.headers, body)
        except Violation as violation:
            self.violations.append(str(violation))
            return problem(400, "global/invalid-parameters", str(violation))
        return None

    def _answered(
        self, request: web.Request, status: int, answer: Any, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        # Errors that the document leaves out exist all the same.
        if status in (200, 400, 401, 403, 404) and answer.get("error", {}).get("code") != "global/unknown":
            self._hold(request, status, answer)
        return web.json_response(answer, status=status, headers=headers)

    def _act(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        match method, path.split("/")[1:]:
            case "GET", ["instance-types"]:
                return 200, {"data": {name: self._listing(name) for name in self.kinds}}
            case "GET", ["instances"]:
                return 200, {"data": list(self.instances.values())}
            case "GET", ["instances", id]:
                found = self.instances.get(id)
                return (200, {"data": found}) if found else problem(404, "global/object-does-not-exist")
            case "POST", ["instance-operations", "launch"]:
                return self._launch(body)
            case "POST", ["instance-operations", "terminate"]:
                return self._terminate(body["instance_ids"])
        raise AssertionError(f"{method} {path} is not for us")

    def _listing(self, name: str) -> dict[str, Any]:
        regions = [_region(region) for region in self.kinds[name].regions]
        return {"instance_type": self.kinds[name].document(name), "regions_with_capacity_available": regions}

    def _launch(self, body: Any) -> tuple[int, Any]:
        if len(body["ssh_key_names"]) != 1:
            return problem(400, "global/invalid-parameters")
        if body["ssh_key_names"][0] not in self.ssh_keys or body["instance_type_name"] not in self.kinds:
            return problem(400, "global/object-does-not-exist", "ssh key or instance type")
        if body["region_name"] not in self.kinds[body["instance_type_name"]].regions:
            return problem(400, "instance-operations/launch/insufficient-capacity")
        id = self._make(body["region_name"], body["instance_type_name"], body)
        return 200, {"data": {"instance_ids": [id]}}

    def _terminate(self, ids: list[str]) -> tuple[int, Any]:
        if any(id not in self.instances for id in ids):
            return problem(404, "global/object-does-not-exist")
        if any(self.instances[id]["status"] == "terminating" for id in ids):
            return problem(400, "global/unknown", "An unknown error occurred.")
        for id in ids:
            self.set(id, "terminating")
        return 200, {"data": {"terminated_instances": [self.instances[id] for id in ids]}}

    def _make(self, region: str, kind: str, body: dict[str, Any], status: str = "booting", **fields: Any) -> str:
        id = f"{len(self.requests):016x}{len(self.instances):016x}"
        actions = ("migrate", "rebuild", "restart", "cold_reboot", "terminate")
        self.instances[id] = {
            "id": id,
            "status": status,
            "ssh_key_names": body.get("ssh_key_names", []),
            "file_system_names": [],
            "region": _region(region),
            "instance_type": self.kinds[kind].document(kind),
            "actions": {name: {"available": True} for name in actions},
            "jupyter_token": "jupyter-secret-token",
            "jupyter_url": "https://jupyter.example/?token=jupyter-secret-token",
            "is_reserved": False,
            **{name: body[name] for name in ("name", "tags") if name in body},
            **fields,
        }
        return id


def problem(status: int, code: str, message: str = "") -> tuple[int, Any]:
    text = message or MESSAGES.get(code, "It cannot be done.")
    return status, {"error": {"code": code, "message": text, "suggestion": "Try something else."}}


def _region(name: str) -> dict[str, str]:
    return {"name": name, "description": "Somewhere, USA"}


@asynccontextmanager
async def fake_lambda(**settings: Any) -> AsyncIterator[tuple[FakeLambda, LambdaCloud]]:
    """The fake and a provider that talks to it."""
    async with FakeLambda().serve() as fake:
        fake.ssh_port = await fake.listen(b"SSH-2.0-OpenSSH_8.9p1 Ubuntu-3\r\n")
        given: dict[str, Any] = {
            "lambda_cloud_api_key": KEY,
            "lambda_cloud_ssh_keys": "planner",
            "lambda_cloud_base_url": fake.url,
        }
        provider = LambdaCloud(Settings(**(given | settings)), clock=fake.clock, ssh_port=fake.ssh_port)
        try:
            yield fake, provider
        finally:
            await provider.close()
