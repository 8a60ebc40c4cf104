"""An API server of Kubernetes that lives in the test's process and speaks HTTP on loopback.

It has what clients have to get right: uids, resourceVersions, creationTimestamps and generations; 409 for names that are taken,
stale versions and uids; labelSelector and fieldSelector; lists in pages (a `continue` may expire: 410); watches that resume, with
bookmarks, timeoutSeconds and 410 after `compact`; deletion with finalizers, foreground, background and orphan, and the garbage
collector for ownerReferences; generateName; /status; pods/log; merge patches; quotas that refuse with 403; namespaces that must exist
(404); tokens (401). And faults: see `fail`, `break_watches`, `silence_watches` and their like.

It does not have: schema validation (any manifest is stored; of names and kinds only the form is checked), defaulting, admission but for
quotas of whole numbers, RBAC, server-side apply, strategic and JSON patches, resourceVersionMatch, streaming lists, deletecollection, and
controllers: no Deployment makes pods, no Job ends, no pod starts, no Service has endpoints. The test drives them, through `put`, `patch`,
`remove` and `on_change`. Objects of a namespace that is deleted stay.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from aiohttp import web
from kubernetes.aio import client

from services.kit.kubernetes.resources import RESOURCES, Resource
from tests.kubernetes import quotas
from tests.kubernetes.faults import Asked, Fault, Planned
from tests.kubernetes.selectors import check, matches
from tests.kubernetes.store import Failed, Happening, Object, Store, merged
from tests.kubernetes.watching import Watch

MERGE_PATCH = "application/merge-patch+json"


class Cluster:
    """One API server. Use `running()`."""

    def __init__(self, *namespaces: str) -> None:
        self.store = Store()
        self.namespace = namespaces[0] if namespaces else "default"
        """Which `connect` says is ours."""
        self.url = ""
        self.token = "token-1"
        """The only one that is accepted, and that `connect` brings."""
        self.connects = 0
        self.asked: list[Asked] = []
        self.planned: list[Planned] = []
        self.texts: dict[tuple[str, str, str, bool], str] = {}
        """Logs, by (namespace, pod, container, previous)."""
        self.expires_as: Literal["event", "status"] = "event"
        """How a watch is told that its version is too old: real servers do both."""
        self.watches: list[Watch] = []
        self._pages: dict[str, tuple[list[Object], int]] = {}
        self._closing = asyncio.Event()
        for name in namespaces or ("default",):
            self.put("namespaces", {"metadata": {"name": name}, "status": {"phase": "Active"}})

    # What the test does, as kubectl, kubelet and controllers do.

    def put(self, resource: str, body: Object) -> Object:
        """Make it, or make it so: all of it, the status too."""
        namespace, name = self._place(resource, body)
        if (resource, namespace, name) in self.store.objects:
            before = self.store.get(resource, namespace, name)
            return copy.deepcopy(self.store.replace(resource, namespace, name, {**_typed(resource), **before, **body}))
        made = self.store.create(resource, namespace, body)
        return copy.deepcopy(made)

    def patch(self, resource: str, namespace: str, name: str, change: Object) -> Object:
        """Merge `change` into it, such as {"status": {"phase": "Running"}}."""
        after = merged(self.store.get(resource, namespace, name), change)
        return copy.deepcopy(self.store.replace(resource, namespace, name, after))

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return copy.deepcopy(self.store.objects.get((resource, namespace, name)))

    def all(self, resource: str, namespace: str = "") -> list[Object]:
        return copy.deepcopy(self.store.matching(resource, namespace))

    def delete(self, resource: str, namespace: str, name: str, propagation: str = "Background") -> None:
        """As `kubectl delete` does: finalizers are waited for."""
        self.store.delete(resource, namespace, name, {"propagationPolicy": propagation})

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """At once, whatever its finalizers say."""
        self.store.remove(resource, namespace, name)

    def on_change(self, told: Callable[[str, str, Object], None]) -> None:
        """Call `told(ADDED | MODIFIED | DELETED, resource, object)` soon after each change: a controller of the test."""
        loop = asyncio.get_running_loop()

        def tell(happening: Happening) -> None:
            loop.call_soon(told, happening.kind, happening.resource, copy.deepcopy(happening.object))

        self.store.watchers.append(tell)

    # What goes wrong.

    def fail(
        self, fault: Fault, *, times: int = 1, method: str = "", path: str = "", is_watch: bool | None = None
    ) -> Planned:
        """Let `fault` happen to the next `times` requests of this method, with this regular expression in the path."""
        planned = Planned(fault, times, method, path, is_watch)
        self.planned.append(planned)
        return planned

    def compact(self) -> None:
        """Forget the past: who watches from before, or has read half a list, gets 410."""
        self.store.compact()
        self._pages.clear()

    def break_watches(self) -> None:
        """All connections of watches break in the middle."""
        self._each(lambda watch: watch.abort())

    def end_watches(self) -> None:
        """All watches end orderly, as they do after timeoutSeconds."""
        self._each(lambda watch: watch.end())

    def silence_watches(self) -> None:
        """The connections stay open, and nothing comes any more, not even an end."""
        self._each(lambda watch: watch.silence())

    def send_to_watches(self, data: bytes) -> None:
        """Whatever it is, such as no JSON."""
        self._each(lambda watch: watch.send(data))

    def fail_watches(self, status: int, message: str = "it was told to fail", reason: str = "") -> None:
        """An ERROR event, after which the server ends the watch."""
        body = _status(Failed(status, reason, message))
        self._each(lambda watch: (watch.event("ERROR", body), watch.end()))

    def bookmark(self) -> None:
        """Tell all watches that want it how far they are."""
        self._each(lambda watch: watch.bookmark(self.store.version))

    def rotate(self) -> None:
        """From now on another token is accepted, and brought by `connect`."""
        self.token = f"token-{uuid.uuid4()}"

    # How clients come here.

    async def connect(self) -> tuple[Any, str]:
        """As services.kit.kubernetes.connect.connect, for `Api(cluster.connect)`."""
        self.connects += 1
        configuration = client.Configuration(host=self.url, api_key={"BearerToken": f"Bearer {self.token}"})
        return client.ApiClient(configuration), self.namespace

    def write_kubeconfig(self, path: Path) -> None:
        """For processes, and for what connects by itself."""
        context = {"cluster": "here", "user": "me", "namespace": self.namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": context}],
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": self.token}}],
        }
        path.write_text(yaml.safe_dump(content))

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Cluster]:
        """It keeps its objects when it ends, and may run again."""
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        self.url = f"http://{host}:{bound}"
        try:
            yield self
        finally:
            self._closing.set()
            self.break_watches()
            await runner.cleanup()

    # HTTP.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        asked = Asked(request.method, request.path, dict(request.query), dict(request.headers), body)
        self.asked.append(asked)
        fault = self._fault(asked)
        if fault is not None and not fault.loses:
            return await self._failing(request, fault)
        try:
            answer = await self._answer(request, asked)
        except Failed as error:
            answer = _failed(error)
        if fault is not None:
            _abort(request)
        return answer

    def _fault(self, asked: Asked) -> Fault | None:
        for planned in self.planned:
            if planned.meets(asked):
                planned.met.append(asked)
                return planned.fault
        return None

    async def _failing(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.hangs:
            await self._closing.wait()
        if fault.hangs or fault.drops:
            _abort(request)
            return web.Response()
        if fault.raw is not None:
            return web.Response(body=fault.raw, content_type="application/json")
        return _failed(Failed(fault.status, fault.reason, fault.message), fault.retry_after)

    async def _answer(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """Error: Failed."""
        if asked.headers.get("Authorization") != f"Bearer {self.token}":
            raise Failed(401, "Unauthorized", "Unauthorized")
        resource, namespace, name, sub = route(asked.path)
        check(asked.query.get("labelSelector", ""), asked.query.get("fieldSelector", ""))
        if sub == "log":
            return web.Response(text=self._log(namespace, name, asked.query))
        if asked.method == "GET" and asked.is_watch:
            return await self._watch(request, resource, namespace, asked.query)
        methods: dict[tuple[str, bool], Callable[[], Object]] = {
            ("GET", False): lambda: self._list(resource, namespace, asked.query),
            ("POST", False): lambda: self._create(resource, namespace, asked.body),
            ("GET", True): lambda: self.store.get(resource, namespace, name),
            ("PUT", True): lambda: self._put(resource, namespace, name, asked.body, sub),
            ("PATCH", True): lambda: self._patch(resource, namespace, name, asked, sub),
            ("DELETE", True): lambda: self._delete(resource, namespace, name, asked),
        }
        method = methods.get((asked.method, bool(name)))
        if method is None:
            raise Failed(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        return web.json_response(method(), status=201 if asked.method == "POST" else 200)

    def _create(self, resource: str, namespace: str, body: Object) -> Object:
        if RESOURCES[resource].is_namespaced:
            found = self.store.get("namespaces", "", namespace)
            if found.get("status", {}).get("phase") == "Terminating":
                message = f"unable to create new content in namespace {namespace} because it is being terminated"
                raise Failed(403, "Forbidden", message)
        if not isinstance(body, dict):
            raise Failed(400, "BadRequest", "the object provided is no object")
        quotas.check(self.store, resource, namespace, body)
        made = {name: part for name, part in body.items() if name != "status"}
        if resource == "pods":
            made["status"] = {"phase": "Pending"}
        if resource == "namespaces":
            made["status"] = {"phase": "Active"}
        return self.store.create(resource, namespace, made)

    def _put(self, resource: str, namespace: str, name: str, body: Object, sub: str) -> Object:
        return self.store.replace(resource, namespace, name, body, "status" if sub else "spec")

    def _patch(self, resource: str, namespace: str, name: str, asked: Asked, sub: str) -> Object:
        given = asked.headers.get("Content-Type", "")
        if given != MERGE_PATCH:
            raise Failed(415, "UnsupportedMediaType", f"the emulator does not have {given}")
        before = self.store.get(resource, namespace, name)
        return self.store.replace(resource, namespace, name, merged(before, asked.body), "status" if sub else "spec")

    def _delete(self, resource: str, namespace: str, name: str, asked: Asked) -> Object:
        """A Status if it is gone, else the object as it is now."""
        options = {**(asked.body or {})}
        if "propagationPolicy" in asked.query:
            options["propagationPolicy"] = asked.query["propagationPolicy"]
        found = self.store.delete(resource, namespace, name, options)
        if (resource, namespace, name) in self.store.objects:
            return found
        details = {"name": name, "kind": RESOURCES[resource].plural, "uid": found["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _list(self, resource: str, namespace: str, query: Any) -> Object:
        if "continue" in query:
            handle, start = json.loads(base64.urlsafe_b64decode(query["continue"]))
            if handle not in self._pages:
                raise Failed(
                    410, "Expired", "The provided continue parameter is too old to display a consistent list result."
                )
            found, version = self._pages[handle]
        else:
            labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
            found = [one for one in self.store.matching(resource, namespace) if matches(one, labels, fields)]
            version, handle, start = self.store.version, str(uuid.uuid4()), 0
        limit = int(query.get("limit", 0)) or len(found)
        metadata: Object = {"resourceVersion": str(version)}
        if start + limit < len(found):
            self._pages[handle] = (found, version)
            metadata["continue"] = base64.urlsafe_b64encode(json.dumps([handle, start + limit]).encode()).decode()
            metadata["remainingItemCount"] = len(found) - start - limit
        # Those of a list say neither, as with a real server.
        items = [
            {key: part for key, part in one.items() if key not in _typed(resource)} for one in found[start:][:limit]
        ]
        kind = RESOURCES[resource]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}

    def _log(self, namespace: str, name: str, query: Any) -> str:
        self.store.get("pods", namespace, name)
        container, is_previous = query.get("container", ""), query.get("previous") == "true"
        text = self.texts.get((namespace, name, container, is_previous))
        if text is None:
            which = "previous terminated " if is_previous else ""
            raise Failed(400, "BadRequest", f'{which}container "{container}" in pod "{name}" is waiting to start')
        tail = "".join(text.splitlines(keepends=True)[-int(query["tailLines"]) :]) if "tailLines" in query else text
        return tail.encode()[: int(query.get("limitBytes", len(text) * 4))].decode(errors="ignore")

    async def _watch(self, request: web.Request, resource: str, namespace: str, query: Any) -> web.StreamResponse:
        given = query.get("resourceVersion") or "0"
        if not given.isdigit():
            raise Failed(400, "BadRequest", f"invalid resource version: {given!r}")
        version = int(given)
        too_old = Failed(410, "Expired", f"too old resource version: {version} ({self.store.compacted})")
        is_expired = 0 < version < self.store.compacted
        if is_expired and self.expires_as == "status":
            raise too_old
        watch = Watch(RESOURCES[resource], resource, namespace, query)
        if is_expired:
            watch.event("ERROR", _status(too_old))
            watch.end()
        else:
            self._begin(watch, version)
        self.watches.append(watch)
        self.store.watchers.append(watch.happened)
        try:
            return await watch.stream(request, self._closing)
        finally:
            self.watches.remove(watch)
            self.store.watchers.remove(watch.happened)

    def _begin(self, watch: Watch, version: int) -> None:
        if not version:
            for found in self.store.matching(watch.name, watch.namespace):
                watch.happened(Happening(self.store.version, "ADDED", watch.name, found, None))
        for happening in self.store.history:
            if version and happening.version > version:
                watch.happened(happening)

    def _each(self, do: Callable[[Watch], object]) -> None:
        for watch in list(self.watches):
            do(watch)

    def _place(self, resource: str, body: Object) -> tuple[str, str]:
        metadata = body.get("metadata", {})
        namespace = metadata.get("namespace", self.namespace) if RESOURCES[resource].is_namespaced else ""
        return namespace, metadata.get("name", "")


def route(path: str) -> tuple[str, str, str, str]:
    """(resource, namespace, name, sub-resource) of a path; "" for what it has not. Error: Failed, 404."""
    for resource, kind in RESOURCES.items():
        found = _pattern(kind).fullmatch(path)
        if found is not None:
            parts = {key: part or "" for key, part in found.groupdict().items()}
            sub = parts.get("sub", "")
            if sub in ("", "status") or (sub == "log" and resource == "pods"):
                return resource, parts.get("namespace", ""), parts["name"], sub
    raise Failed(404, "NotFound", "the server could not find the requested resource")


def _pattern(kind: Resource) -> re.Pattern[str]:
    group = f"/apis/{kind.api_version}" if "/" in kind.api_version else f"/api/{kind.api_version}"
    within = "(?:/namespaces/(?P<namespace>[^/]+))?" if kind.is_namespaced else ""
    return re.compile(rf"{re.escape(group)}{within}/{kind.plural}(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?")


def _typed(resource: str) -> Object:
    return {"apiVersion": RESOURCES[resource].api_version, "kind": RESOURCES[resource].kind}


def _status(error: Failed) -> Object:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": error.status}
    return status | {"message": error.message, "reason": error.reason, "details": error.details}


def _failed(error: Failed, retry_after: int | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response(_status(error), status=error.status, headers=headers)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
