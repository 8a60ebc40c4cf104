"""What deploy/kubernetes makes, as the API server would get it, and what its network policies come to."""

from __future__ import annotations

import functools
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.files import ROOT
from tests.deploy.kustomize import Object, render
from tests.kubernetes.rules import pod_template

FOLDER = ROOT / "deploy" / "kubernetes"
TOPS = ("base", "overlays/kind", "overlays/example")
PLATFORM, ENGINES, STORAGE = "aibrix-batch", "aibrix-engines", "aibrix-storage"
POD_IP = "10.244.0.7"
NAME = "kubernetes.io/metadata.name"


@functools.cache
def rendered(top: str) -> tuple[Object, ...]:
    return tuple(render(FOLDER / top))


def of_kind(top: str, *kinds: str) -> list[Object]:
    return [one for one in rendered(top) if one["kind"] in kinds]


def named(top: str, kind: str, name: str, namespace: str = PLATFORM) -> Object:
    (found,) = (
        one
        for one in of_kind(top, kind)
        if (one["metadata"]["name"], one["metadata"].get("namespace", "")) == (name, namespace)
    )
    return found


def workloads(top: str) -> Iterator[tuple[Object, Object]]:
    """Each object that makes pods, and the template of its pods."""
    for one in rendered(top):
        template = pod_template(one)
        if template is not None:
            yield one, template


@functools.cache
def published() -> dict[str, Object]:
    """Schemas of custom resources by `group/version/kind`, closed: a field that they do not name is an error."""
    schemas: dict[str, Object] = {}
    for path in sorted((ROOT / "tests" / "deploy" / "published").glob("*.json")):
        schemas |= json.loads(path.read_text())["schemas"]
    return {name: _closed(schema) for name, schema in schemas.items()}


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(inner) for key, inner in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@dataclass(frozen=True)
class Peer:
    """A pod in a namespace, or an address outside of the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ip: str = POD_IP
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def component(name: str, namespace: str = PLATFORM) -> Peer:
    labels = {"app.kubernetes.io/component": name}
    if namespace == PLATFORM:
        labels["app.kubernetes.io/name"] = PLATFORM
    return Peer(namespace, labels)


class Network:
    """NetworkPolicy as its API page says: what no policy selects is open; what one selects gets what any of its policies allows."""

    def __init__(self, objects: tuple[Object, ...]) -> None:
        self.policies = [one for one in objects if one["kind"] == "NetworkPolicy"]

    def allows(self, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
        leaves = self._side("Egress", source, target, port, protocol)
        return leaves and self._side("Ingress", target, source, port, protocol)

    def _side(self, direction: str, bound: Peer, other: Peer, port: int, protocol: str) -> bool:
        mine = [one for one in self.policies if self._binds(one, direction, bound)]
        rules = [(one, rule) for one in mine for rule in one["spec"].get(direction.lower()) or []]
        peers = "to" if direction == "Egress" else "from"
        return not mine or any(
            _port(rule, port, protocol) and _peers(rule.get(peers), other, one["metadata"]["namespace"])
            for one, rule in rules
        )

    def _binds(self, policy: Object, direction: str, pod: Peer) -> bool:
        spec = policy["spec"]
        here = policy["metadata"]["namespace"] == pod.namespace
        return here and direction in spec["policyTypes"] and selects(spec["podSelector"], pod.labels)


def _port(rule: Object, port: int, protocol: str) -> bool:
    said = rule.get("ports")
    return not said or any(one["port"] == port and one["protocol"] == protocol for one in said)


def _peers(said: list[Object] | None, peer: Peer, home: str) -> bool:
    return not said or any(_peer(one, peer, home) for one in said)


def _peer(said: Object, peer: Peer, home: str) -> bool:
    assert said.keys() <= {"ipBlock", "namespaceSelector", "podSelector"}
    if "ipBlock" in said:  # of a pod its address counts too: whether it does is left to a cluster's network
        block = said["ipBlock"]
        return _within(peer.ip, block["cidr"]) and not any(_within(peer.ip, one) for one in block.get("except", []))
    if not peer.namespace:
        return False
    if "namespaceSelector" in said:
        there = selects(said["namespaceSelector"], {NAME: peer.namespace, **peer.namespace_labels})
    else:
        there = peer.namespace == home
    return there and selects(said.get("podSelector", {}), peer.labels)


def _within(ip: str, network: str) -> bool:
    return ipaddress.ip_address(ip) in ipaddress.ip_network(network)  # of another family it is not


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return True
