"""The objects of an emulated cluster, and everything that happened to them: what etcd and the garbage collector are to a real one."""

from __future__ import annotations

import copy
import itertools
import re
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from services.kit.kubernetes.resources import RESOURCES

Object = dict[str, Any]
Key = tuple[str, str, str]
"""(resource, namespace, name)"""

FOREGROUND = "foregroundDeletion"
_AGAIN = "please apply your changes to the latest version and try again"
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# Kinds whose names become a part of a DNS name.
LABELS = {"services", "namespaces"}


class Failed(Exception):
    """An answer that is an error: its HTTP status, the reason and the message of the Status."""

    def __init__(self, status: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details


@dataclass(frozen=True)
class Happening:
    """One change. `before` is None for what was added."""

    version: int
    kind: str
    resource: str
    object: Object
    before: Object | None


@dataclass
class Store:
    objects: dict[Key, Object] = field(default_factory=dict)
    history: list[Happening] = field(default_factory=list)
    compacted: int = 1000
    """Nothing before this version is known any more."""
    watchers: list[Callable[[Happening], None]] = field(default_factory=list)
    pods_linger: bool = False
    """Whether pods that were bound to a node stay until the test, as their kubelet, removes them."""
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1001))
    version: int = 1000
    _is_collecting: bool = False

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """Error: Failed, 404."""
        found = self.objects.get((resource, namespace, name))
        if found is None:
            raise Failed(404, "NotFound", f'{resource} "{name}" not found')
        return found

    def matching(self, resource: str, namespace: str = "") -> list[Object]:
        """By namespace and name."""
        return [
            found
            for (kind, where, _), found in sorted(self.objects.items(), key=lambda item: item[0])
            if kind == resource and (not namespace or where == namespace)
        ]

    def create(self, resource: str, namespace: str, body: Object) -> Object:
        """Error: Failed."""
        made = copy.deepcopy(body)
        metadata = made.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = f"{metadata['generateName'][:58]}{secrets.token_hex(3)[:5]}"
        name = metadata.get("name", "")
        self._check(resource, namespace, made)
        present = self.objects.get((resource, namespace, name))
        if present is not None:
            prefix = "object is being deleted: " if "deletionTimestamp" in present["metadata"] else ""
            raise Failed(409, "AlreadyExists", f'{prefix}{resource} "{name}" already exists')
        for given in (
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
            "managedFields",
        ):
            metadata.pop(given, None)
        if RESOURCES[resource].is_namespaced:
            metadata["namespace"] = namespace
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(), "generation": 1}
        self._store((resource, namespace, name), made, None)
        self.collect()
        return made

    def replace(
        self, resource: str, namespace: str, name: str, body: Object, part: Literal["all", "spec", "status"] = "all"
    ) -> Object:
        """`part`: clients change the status, or all but that; the test changes what it wants.

        Error: Failed; 409 if `body` says another resourceVersion.
        """
        before = self.get(resource, namespace, name)
        version = body.get("metadata", {}).get("resourceVersion")
        if version and version != before["metadata"]["resourceVersion"]:
            raise Failed(409, "Conflict", f"{_unfulfilled(resource, name)}: the object has been modified; {_AGAIN}")
        after = copy.deepcopy(before if part == "status" else body)
        given = before if part == "spec" else body
        after.pop("status", None)
        if "status" in given:
            after["status"] = copy.deepcopy(given["status"])
        after["metadata"] = {**after.get("metadata", {}), **_fixed(before)}
        if after == before:
            return before
        if {**after, "metadata": 0, "status": 0} != {**before, "metadata": 0, "status": 0}:
            after["metadata"]["generation"] = before["metadata"].get("generation", 0) + 1
        if _is_leaving(after) and not after["metadata"].get("finalizers") and not self._lingers(resource, after):
            return self.remove(resource, namespace, name)
        self._store((resource, namespace, name), after, before)
        self.collect()
        return after

    def delete(self, resource: str, namespace: str, name: str, options: Object) -> Object:
        """Error: Failed."""
        found = self.get(resource, namespace, name)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid and uid != found["metadata"]["uid"]:
            uids = f"UID in precondition: {uid}, UID in object meta: {found['metadata']['uid']}"
            raise Failed(409, "Conflict", f"{_unfulfilled(resource, name)}: Precondition failed: {uids}")
        policy = options.get("propagationPolicy") or "Background"
        if policy == "Orphan":
            self._orphan(found["metadata"]["uid"])
        finalizers = list(found["metadata"].get("finalizers") or [])
        if policy == "Foreground" and FOREGROUND not in finalizers and self.dependents(found, blocking=True):
            finalizers.append(FOREGROUND)
        if not finalizers and not self._lingers(resource, found):
            return self.remove(resource, namespace, name)
        if "deletionTimestamp" not in found["metadata"]:
            after = copy.deepcopy(found)
            grace = options.get("gracePeriodSeconds", 30 if resource == "pods" else 0)
            after["metadata"] |= {"deletionTimestamp": timestamp(), "deletionGracePeriodSeconds": grace}
            if finalizers:
                after["metadata"]["finalizers"] = finalizers
            self._store((resource, namespace, name), after, found)
            self.collect()
            found = after
        return found

    def remove(self, resource: str, namespace: str, name: str) -> Object:
        """At once, whatever its finalizers say: the last thing that happens to an object."""
        before = self.objects.pop((resource, namespace, name))
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = self._next()
        self._tell(Happening(self.version, "DELETED", resource, last, before))
        self.collect()
        return last

    def dependents(self, owner: Object, *, blocking: bool = False) -> list[tuple[Key, Object]]:
        uid = owner["metadata"]["uid"]
        return [
            (key, found)
            for key, found in self.objects.items()
            for reference in found["metadata"].get("ownerReferences") or []
            if reference["uid"] == uid and (not blocking or reference.get("blockOwnerDeletion"))
        ]

    def collect(self) -> None:
        """Garbage: dependents whose owners are all gone, or go in the foreground; owners who waited for them."""
        if self._is_collecting:
            return
        self._is_collecting = True
        try:
            while self._collect_one():
                pass
        finally:
            self._is_collecting = False

    def _collect_one(self) -> bool:
        owners = {found["metadata"]["uid"]: found for found in self.objects.values()}
        for key, found in self.objects.items():
            references = found["metadata"].get("ownerReferences") or []
            present = [owners[reference["uid"]] for reference in references if reference["uid"] in owners]
            is_orphan = bool(references) and all(_waits(owner) for owner in present)
            if is_orphan and not _is_leaving(found):
                self.delete(*key, {"propagationPolicy": "Foreground" if present else "Background"})
                return True
            if _waits(found) and not self.dependents(found, blocking=True):
                after = copy.deepcopy(found)
                after["metadata"]["finalizers"].remove(FOREGROUND)
                self.replace(*key, after)
                return True
        return False

    def compact(self) -> None:
        """Forget what happened: who watches from before has to list anew."""
        self.history.clear()
        self.compacted = self.version

    def _check(self, resource: str, namespace: str, made: Object) -> None:
        kind, name = RESOURCES[resource], made["metadata"].get("name", "")
        if (made.get("apiVersion", kind.api_version), made.get("kind", kind.kind)) != (kind.api_version, kind.kind):
            raise Failed(400, "BadRequest", f"the object provided is unrecognized as {kind.api_version} {kind.kind}")
        if made["metadata"].get("namespace", namespace) != namespace:
            said = "the namespace of the provided object does not match the namespace sent on the request"
            raise Failed(400, "BadRequest", said)
        form, longest = (LABEL, 63) if resource in LABELS else (SUBDOMAIN, 253)
        if not form.fullmatch(name) or len(name) > longest:
            said = f'metadata.name: Invalid value: "{name}": it must be a lowercase RFC 1123 name'
            raise Failed(422, "Invalid", f'{kind.kind} "{name}" is invalid: {said}')
        made.setdefault("apiVersion", kind.api_version)
        made.setdefault("kind", kind.kind)

    def _store(self, key: Key, after: Object, before: Object | None) -> None:
        after["metadata"]["resourceVersion"] = self._next()
        self.objects[key] = after
        self._tell(Happening(self.version, "MODIFIED" if before else "ADDED", key[0], after, before))

    def _tell(self, happening: Happening) -> None:
        self.history.append(happening)
        for watcher in list(self.watchers):
            watcher(happening)

    def _next(self) -> str:
        self.version = next(self._versions)
        return str(self.version)

    def _lingers(self, resource: str, found: Object) -> bool:
        return self.pods_linger and resource == "pods" and bool(found.get("spec", {}).get("nodeName"))

    def _orphan(self, uid: str) -> None:
        for (resource, namespace, name), found in list(self.objects.items()):
            kept = [one for one in found["metadata"].get("ownerReferences") or [] if one["uid"] != uid]
            if len(kept) != len(found["metadata"].get("ownerReferences") or []):
                after = copy.deepcopy(found)
                after["metadata"]["ownerReferences"] = kept
                self._store((resource, namespace, name), after, found)


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    after = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        else:
            after[key] = merged(after.get(key), value)
    return after


def _fixed(before: Object) -> Object:
    """Metadata that nobody but the server changes."""
    names = ("name", "namespace", "uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp")
    return {name: before["metadata"][name] for name in names if name in before["metadata"]}


def _is_leaving(found: Object) -> bool:
    return "deletionTimestamp" in found["metadata"]


def _waits(found: Object) -> bool:
    """Whether it is on its way out, and waits for its dependents."""
    return FOREGROUND in (found["metadata"].get("finalizers") or [])


def _unfulfilled(resource: str, name: str) -> str:
    return f'Operation cannot be fulfilled on {resource} "{name}"'
