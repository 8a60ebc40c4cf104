"""Calls of the Kubernetes API, with one policy for what may go wrong. Objects are dicts as the API writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Literal

import aiohttp

from services.kit.kubernetes.connect import Connect, connect
from services.kit.kubernetes.errors import ApiError, Expired, Refused, Unavailable
from services.kit.kubernetes.policy import Policy
from services.kit.kubernetes.requests import MERGE_PATCH, Answer, Request, ask, error_of, read_answer
from services.kit.kubernetes.requests import Object as Object
from services.kit.kubernetes.resources import RESOURCES
from services.kit.kubernetes.sessions import Sessions
from services.kit.kubernetes.stream import Event, events, streaming

# How long one call may take, retries and all.
TIMEOUT_S = 30.0
# How long one answer is waited for.
ATTEMPT_S = 10.0
# Objects per page of a list.
PAGE = 500
# How often a list is begun because it became too old while it was read.
LISTS = 3
# How much longer than the server we keep a watch up.
GRACE_S = 10.0

Objects = list[Object]
Propagation = Literal["Foreground", "Background", "Orphan"]


class Api:
    """One connection to one cluster, for any number of calls at once.

    `resource` is a name of `resources.RESOURCES`, such as `pods` or `deployments.apps`. `namespace` is "" for what has none,
    and to list or watch all namespaces. `timeout` is the deadline of a call in seconds, retries and all.

    Each call may raise `Refused`, `Unavailable`, and `NoCredentials` (all are `ApiError`). A 401 makes it connect once more,
    with fresh credentials. 429, 5xx and connections that break are tried again: after what Retry-After says, else after a
    pause that doubles, with full jitter.
    """

    def __init__(self, connect: Connect = connect) -> None:
        self._sessions = Sessions(connect)

    @property
    def namespace(self) -> str:
        """That of the credentials; "" until the first call or `open`."""
        return self._sessions.namespace

    async def open(self) -> str:
        """Connect, without asking the server anything. The namespace of the credentials. Error: NoCredentials."""
        await self._sessions.current()
        return self._sessions.namespace

    async def close(self) -> None:
        """Close all connections. It may be used again."""
        await self._sessions.close()

    async def create(self, resource: str, namespace: str, body: Object, *, timeout: float = TIMEOUT_S) -> Object:
        """The object as it was stored.

        Error: AlreadyThere, also if it was made by an earlier attempt of this very call, whose answer was lost. An object that
        has a `generateName` only is not tried again after a lost answer.
        """
        path, params = RESOURCES[resource].path(namespace)
        is_named = bool(body["metadata"].get("name"))
        request = Request("POST", path, params, body=body, is_repeatable=is_named)
        return (await self._call(request, timeout)).object

    async def read(self, resource: str, namespace: str, name: str, *, timeout: float = TIMEOUT_S) -> Object | None:
        """The object; None: there is none."""
        path, params = RESOURCES[resource].path(namespace, name)
        return await self._found(Request("GET", path, params), timeout)

    async def delete(
        self,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        propagation: Propagation = "Foreground",
        timeout: float = TIMEOUT_S,
    ) -> bool:
        """Ask for its deletion, which may last: finalizers and grace periods. False: it was gone, or is not the one of `uid`."""
        path, params = RESOURCES[resource].path(namespace, name)
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        policy = Policy(timeout)
        while True:
            try:
                await self._attempts(Request("DELETE", path, params, body=options, is_guarded=uid is not None), policy)
                return True
            except Refused as error:
                if error.status == 404:
                    return False
                if uid is None or error.status != 409:
                    raise
                refused = error
            # Another one has the name now, or somebody changed ours at this moment.
            found = await self.read(resource, namespace, name, timeout=policy.left())
            if found is None or (found.get("metadata") or {}).get("uid") != uid:
                return False
            await asyncio.sleep(policy.pause_after_conflict(refused))

    async def list(
        self,
        resource: str,
        namespace: str,
        *,
        selector: str = "",
        field: str = "",
        timeout: float = TIMEOUT_S,
        retries: bool = True,
    ) -> tuple[Objects, str]:
        """All objects that match, and the resourceVersion of the list. `selector`: labels; `field`: such as metadata.name=x.

        Without `retries` the first failure is raised: for callers with a patience of their own.
        """
        policy = Policy(timeout, retries=retries)
        for _ in range(LISTS):
            try:
                return await self._pages(resource, namespace, _selecting(selector, field), policy)
            except Expired:
                continue
        raise Unavailable("the Kubernetes API forgets a list faster than it can be read", status=410)

    async def patch(
        self, resource: str, namespace: str, name: str, body: Object, *, timeout: float = TIMEOUT_S
    ) -> Object | None:
        """Merge `body` into it (RFC 7386: None removes). The object as it is then; None: there is none.

        With a metadata.resourceVersion in `body` a conflict is `Refused` (409) at once; without one it is tried again.
        """
        path, params = RESOURCES[resource].path(namespace, name)
        is_guarded = "resourceVersion" in body.get("metadata", {})
        request = Request("PATCH", path, params, body=body, content_type=MERGE_PATCH, is_guarded=is_guarded)
        return await self._found(request, timeout)

    async def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        lines: int,
        limit_bytes: int,
        previous: bool = False,
        timeout: float = TIMEOUT_S,
    ) -> str:
        """The last `lines` of a container, `limit_bytes` bytes at most; "": there are none (not started, gone)."""
        path, params = RESOURCES["pods"].path(namespace, pod, "log")
        query: dict[str, str | int] = {"container": container, "tailLines": lines, "limitBytes": limit_bytes}
        if previous:
            query["previous"] = "true"
        try:
            answer = await self._call(Request("GET", path, params, query, is_text=True), timeout)
        except Refused as error:
            if error.status in (400, 404):
                return ""
            raise
        return answer.body[:limit_bytes].decode(errors="replace")

    async def watch(
        self,
        resource: str,
        namespace: str,
        resource_version: str,
        *,
        selector: str = "",
        field: str = "",
        seconds: int = 40,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """One watch: what happens after `resource_version`, as (ADDED | MODIFIED | DELETED | BOOKMARK, object).

        It ends when the server ends it, which it is told to do after `seconds`; a little later we do. Nothing is tried again,
        but for a 401. `on_open` is called when the server has accepted it. Use it with `contextlib.aclosing`.
        Error: Expired, Refused, Unavailable. Most callers want an `Informer`.
        """
        path, params = RESOURCES[resource].path(namespace)
        query: dict[str, str | int] = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": seconds,
            **_selecting(selector, field),
        }
        async with AsyncExitStack() as stack:
            response = await self._streaming(stack, Request("GET", path, params, query), seconds + GRACE_S)
            if on_open is not None:
                on_open()
            async with aclosing(events(response)) as found:
                async for event in found:
                    yield event

    async def _streaming(self, stack: AsyncExitStack, request: Request, seconds: float) -> aiohttp.ClientResponse:
        """An answer that is read until the end of `stack`. Error: ApiError."""
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=ATTEMPT_S)
        policy = Policy(seconds, retries=False)
        while True:
            session = await stack.enter_async_context(self._sessions.using())
            response = await stack.enter_async_context(streaming(session.client, request, limits))
            if response.status == 200:
                return response
            if response.status == 401:
                self._sessions.retire(session)
            policy.pause_after(error_of(await read_answer(response)), request)

    async def _pages(
        self, resource: str, namespace: str, selecting: dict[str, str], policy: Policy
    ) -> tuple[Objects, str]:
        """Error: Expired, in the middle, too."""
        kind = RESOURCES[resource]
        path, params = kind.path(namespace)
        typed = {"apiVersion": kind.api_version, "kind": kind.kind}
        objects: Objects = []
        query: dict[str, str | int] = {"limit": PAGE, **selecting}
        while True:
            page = (await self._attempts(Request("GET", path, params, query), policy)).object
            try:
                # Those of a list say neither, unlike those of a watch.
                objects += [{**typed, **item} for item in page["items"] or () if item["metadata"]["name"]]
                version, more = page["metadata"].get("resourceVersion"), page["metadata"].get("continue")
            except (AttributeError, TypeError, KeyError) as error:
                raise Unavailable(f"the Kubernetes API answers something that is no list of {resource}") from error
            if not more:
                return objects, str(version or "")
            query["continue"] = more

    async def _found(self, request: Request, timeout: float) -> Object | None:
        try:
            return (await self._call(request, timeout)).object
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def _call(self, request: Request, timeout: float) -> Answer:
        try:
            return await self._attempts(request, Policy(timeout))
        except Expired as error:
            raise Unavailable(error.message, status=error.status, reason=error.reason) from None

    async def _attempts(self, request: Request, policy: Policy) -> Answer:
        """The first good answer. Error: ApiError."""
        while True:
            try:
                return await self._attempt(request, min(ATTEMPT_S, policy.left()))
            except ApiError as error:
                pause = policy.pause_after(error, request)
            await asyncio.sleep(pause)

    async def _attempt(self, request: Request, seconds: float) -> Answer:
        """Error: ApiError."""
        try:
            # To connect may take long too: kubeconfigs name programs that make credentials.
            async with asyncio.timeout(seconds), self._sessions.using() as session:
                answer = await ask(session.client, request, seconds)
                if answer.status == 401:
                    self._sessions.retire(session)
        except TimeoutError:
            raise Unavailable("the Kubernetes API does not answer: TimeoutError") from None
        if not answer.is_good:
            raise error_of(answer)
        if not request.is_text:
            answer.object  # noqa: B018 - so that one which is none is a failed attempt
        return answer


def _selecting(selector: str, field: str) -> dict[str, str]:
    given: dict[str, Any] = {"labelSelector": selector, "fieldSelector": field}
    return {name: text for name, text in given.items() if text}
