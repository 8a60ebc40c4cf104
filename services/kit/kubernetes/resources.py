"""The kinds of objects that this platform touches, and where the API has them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """One kind of objects."""

    api_version: str
    """Group and version, such as `apps/v1`; `v1` is the core group."""
    plural: str
    kind: str
    is_namespaced: bool = True

    def path(self, namespace: str, name: str | None = None, sub: str = "") -> tuple[str, dict[str, str]]:
        """The path of all objects (of one namespace, if it is named) or of one, and what its placeholders stand for."""
        path = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        params = {}
        if self.is_namespaced and namespace:
            path += "/namespaces/{namespace}"
            params["namespace"] = _part(namespace)
        path += f"/{self.plural}"
        if name is not None:
            path += "/{name}"
            params["name"] = _part(name)
        return path + (f"/{sub}" if sub else ""), params


RESOURCES = {
    "configmaps": Resource("v1", "configmaps", "ConfigMap"),
    "deployments.apps": Resource("apps/v1", "deployments", "Deployment"),
    "endpointslices.discovery.k8s.io": Resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
    "events": Resource("v1", "events", "Event"),
    "jobs.batch": Resource("batch/v1", "jobs", "Job"),
    "namespaces": Resource("v1", "namespaces", "Namespace", is_namespaced=False),
    "persistentvolumeclaims": Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    "pods": Resource("v1", "pods", "Pod"),
    "resourcequotas": Resource("v1", "resourcequotas", "ResourceQuota"),
    "services": Resource("v1", "services", "Service"),
}
"""By their names with `kubectl`, which are those of RBAC too."""


def _part(text: str) -> str:
    """One part of a path. Error: ValueError, if it would lead to another place."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is no name of an object")
    return text
