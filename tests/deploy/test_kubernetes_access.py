"""deploy/kubernetes: who may call what of the Kubernetes API, and who may talk to whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from services.kit.kubernetes.resources import RESOURCES
from services.kit.settings import Settings
from services.runner.runtimes.kubernetes.follow import SELECTORS
from services.runner.runtimes.kubernetes.plan import PORT as ENGINE_PORT
from services.runner.runtimes.kubernetes.workloads import Kubernetes, KubernetesJob
from tests.deploy.files import ROOT
from tests.deploy.kube import (
    ENGINES,
    PLATFORM,
    STORAGE,
    TOPS,
    Network,
    Peer,
    component,
    named,
    of_kind,
    rendered,
    workloads,
)

Rights = dict[tuple[str, str], set[str]]
SERVICES = ROOT / "services"
INFORMED = {"list", "watch"}
# What a method of services.kit.kubernetes.api.Api asks for, and what methods of the client itself do.
VERBS = {"read": "get"} | {verb: verb for verb in ("create", "list", "watch", "patch", "delete")}
PLAIN = {"list_namespaced_resource_quota": ("resourcequotas", "list"), "read_namespace": ("namespaces", "get")}


def parsed(folder: str) -> Iterator[ast.AST]:
    for path in sorted((SERVICES / folder).rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text()))


def of_the_runner() -> Rights:
    """By its calls of an Api, whose first argument is a resource, or the workload of either target; and what it follows."""
    rights: Rights = {(ENGINES, resource): set(INFORMED) for resource in SELECTORS}
    for node in parsed("runner/runtimes/kubernetes"):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="api" | "_api"), attr="logs")):
                rights[ENGINES, "pods/log"] = {"get"}
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="api" | "_api"), attr=method), args=[first, *_]):
                for resource in _resources(first):
                    rights.setdefault((ENGINES, resource), set()).add(VERBS[method])
    return rights


def _resources(said: ast.expr) -> list[str]:
    match said:
        case ast.Constant(value=str(resource)):
            return [resource]
        case ast.Attribute(attr="resource"):
            return [Kubernetes.resource, KubernetesJob.resource]
    raise AssertionError(f"which resource is {ast.unparse(said)}?")


def of_the_planner() -> Rights:
    rights: Rights = {}
    for node in parsed("planner/resource_manager"):
        if isinstance(node, ast.Attribute) and node.attr in PLAIN:
            resource, verb = PLAIN[node.attr]
            rights.setdefault((ENGINES, resource), set()).add(verb)
    return rights


CALLS: dict[str, Rights] = {
    # An Informer of one ConfigMap, by its name.
    "metadata": {(PLATFORM, "configmaps"): set(INFORMED)},
    "planner": of_the_planner(),
    "runner": of_the_runner(),
}
BY_NAME = {
    (PLATFORM, "configmaps"): ["aibrix-templates", "aibrix-profiles"],
    (ENGINES, "namespaces"): [ENGINES],
}


@pytest.mark.parametrize("top", TOPS)
def test_each_role_may_call_what_it_calls_and_nothing_else(top: str) -> None:
    assert of_kind(top, "ClusterRole", "ClusterRoleBinding") == []
    granted: dict[str, dict[tuple[str, str], set[str]]] = {}
    for binding in of_kind(top, "RoleBinding"):
        assert binding["roleRef"]["kind"] == "Role"
        role = named(top, "Role", binding["roleRef"]["name"], binding["metadata"]["namespace"])
        (subject,) = binding["subjects"]
        assert named(top, "ServiceAccount", subject["name"], subject["namespace"])
        mine = granted.setdefault(subject["name"], {})
        for rule in role["rules"]:
            (group,), (resource,) = rule["apiGroups"], rule["resources"]
            key = (role["metadata"]["namespace"], f"{resource}.{group}" if group else resource)
            assert key not in mine
            mine[key] = set(rule["verbs"])
            assert rule.get("resourceNames") == BY_NAME.get(key)
            assert key[1].partition("/")[0] in RESOURCES, "a misspelt resource is no error of any schema"
    assert granted == CALLS
    assert len(of_kind(top, "Role")) == len(of_kind(top, "RoleBinding"))


@pytest.mark.parametrize("top", TOPS)
def test_who_has_no_rights_has_no_token(top: str) -> None:
    for account in of_kind(top, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for one, template in workloads(top):
        name = template["spec"]["serviceAccountName"]
        assert template["spec"]["automountServiceAccountToken"] is (name in CALLS), one["metadata"]["name"]
        if one["metadata"]["namespace"] == PLATFORM:
            assert name == one["metadata"]["name"], "an account for each"


def test_the_registry_is_what_metadata_may_read() -> None:
    (settings,) = (one["data"] for one in of_kind("base", "ConfigMap") if "PROVISIONER" in one["data"])
    sources = {settings["AIBRIX_TEMPLATES__SOURCE"], settings["AIBRIX_PROFILES__SOURCE"]}
    assert sources == {f"configmap:{PLATFORM}/{name}" for name in BY_NAME[PLATFORM, "configmaps"]}
    assert settings["AIBRIX_KUBERNETES__NAMESPACE"] == ENGINES
    assert named("base", "ConfigMap", settings["AIBRIX_KUBERNETES__WORKER_CONFIG"], ENGINES)
    assert settings["AIBRIX_KUBERNETES__WORKER_SECRET"] == Settings().kubernetes.worker_secret


ROLES = ("gateway", "console", "planner", "metadata", "runner", "migrate")
PEERS: dict[str, Peer] = {
    **{role: component(role) for role in ROLES},
    "engine": component("engine", ENGINES),
    "worker": component("worker", ENGINES),
    "stranger in engines": Peer(ENGINES, {"app": "x"}),
    "stranger beside": Peer(PLATFORM, {"app": "x"}),
    "stranger": Peer("default", {"app.kubernetes.io/name": PLATFORM, "app.kubernetes.io/component": "runner"}),
    "impostor": Peer(ENGINES, {"app.kubernetes.io/name": PLATFORM, "app.kubernetes.io/component": "runner"}),
    "ingress": Peer("ingress", {}, namespace_labels={"aibrix-batch/may-call": "gateway"}),
    "prometheus": Peer("monitoring", {}),
    "keda": Peer("keda", {"app": "keda-operator"}),
    "keda's webhooks": Peer("keda", {"app": "keda-admission-webhooks"}),
}
PORTS = {"gateway": 8080, "metadata": 50051, "planner": 50052, "console": 50053, "runner": 50054, "engine": ENGINE_PORT}
METRICS = 9090
MAY_CALL = {
    *product(["ingress"], ["gateway"], [8080]),
    *product(["gateway", "planner", "runner", "worker"], ["metadata"], [50051]),
    *product(["gateway", "metadata"], ["console"], [50053]),
    *product(["console"], ["planner"], [50052]),
    *product(["runner"], ["engine"], [ENGINE_PORT]),
    # `migrate` has no port there; the policy is for all pods of ours.
    *product(["prometheus"], ROLES, [METRICS]),
}


@pytest.mark.parametrize("top", TOPS)
def test_who_may_talk_to_whom(top: str) -> None:
    network = Network(rendered(top))
    ours = [*ROLES, "engine", "worker", "stranger beside", "stranger in engines", "impostor"]
    ports = [*PORTS.values(), METRICS, 80, 443, 5432, 6443]
    allowed = {
        (source, target, port)
        for source, target, port in product(PEERS, ours, ports)
        if network.allows(PEERS[source], PEERS[target], port)
    }
    with_keda = {("keda", "metadata", 50051)} if of_kind(top, "ScaledObject") else set()
    assert allowed == MAY_CALL | with_keda


PUBLIC, PUBLIC_6, PRIVATE, CREDENTIALS = "93.184.216.34", "2606:2800::1", "10.1.2.3", "169.254.169.254"
OUTSIDE = {
    # Who: ports at public addresses; ports at private ones.
    "gateway": ({443}, {443}),
    "console": ({5432}, {5432}),
    "planner": ({22, 443, 5432, 6443, 8000}, {443, 5432, 6443}),
    "metadata": ({443, 5432, 6443}, {443, 5432, 6443}),
    "runner": ({22, 443, 5432, 6443, 8000}, {443, 6443}),
    "migrate": ({5432}, {5432}),
    "engine": ({443}, set()),
    "worker": ({443}, set()),
    "stranger in engines": (set(), set()),
    "stranger beside": (set(), set()),
}


@pytest.mark.parametrize("who", OUTSIDE)
def test_who_gets_out(who: str) -> None:
    network = Network(rendered("base"))

    def reached(ip: str) -> set[int]:
        return {port for port in (22, 443, 5432, 6443, 8000) if network.allows(PEERS[who], Peer(ip=ip), port)}

    public, private = OUTSIDE[who]
    assert reached(PUBLIC) == reached(PUBLIC_6) == public
    for ip in (PRIVATE, "172.16.0.9", "192.168.1.1", "100.64.0.3"):
        assert reached(ip) == private
    for ip in (CREDENTIALS, "169.254.170.2", "fe80::1", "fd00:ec2::254"):
        assert reached(ip) == set()


def test_everybody_asks_for_names_and_nobody_else_is_asked() -> None:
    network = Network(rendered("base"))
    dns = Peer("kube-system", {"k8s-app": "kube-dns"})
    for who in OUTSIDE:
        for protocol in ("UDP", "TCP"):
            assert network.allows(PEERS[who], dns, 53, protocol)
            assert not network.allows(PEERS[who], Peer("kube-system", {}), 53, protocol)
            assert not network.allows(PEERS[who], Peer("default", {"k8s-app": "kube-dns"}), 53, protocol)


def test_storage_of_the_trial_is_for_those_who_need_it() -> None:
    network = Network(rendered("overlays/kind"))
    postgres, objects = (Peer(STORAGE, {"app.kubernetes.io/name": name}) for name in ("postgres", "objects"))
    bucket = {"bucket": Peer(STORAGE, {"app.kubernetes.io/name": "bucket"})}

    def callers(target: Peer, port: int) -> set[str]:
        return {who for who, peer in (PEERS | bucket).items() if network.allows(peer, target, port)}

    assert callers(postgres, 5432) == {"metadata", "planner", "console", "migrate"}
    assert callers(objects, 9000) == {"gateway", "metadata", "runner", "worker", "bucket"}
    assert callers(objects, 443) == callers(postgres, 9000) == set()


def pod(namespace: str, **labels: str) -> Peer:
    return Peer(namespace, labels)


@pytest.mark.parametrize(
    ("spec", "verdict"),
    [
        ({"podSelector": {}, "policyTypes": ["Ingress"]}, False),
        ({"podSelector": {"matchLabels": {"a": "other"}}, "policyTypes": ["Ingress"]}, True),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, True),
        ({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}, True),
        (
            {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 2, "protocol": "TCP"}]}]},
            False,
        ),
        ({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}, False),
        ({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"namespaceSelector": {}}]}]}, True),
    ],
)
def test_the_evaluator_reads_policies_as_their_reference_says(spec: dict[str, Any], verdict: bool) -> None:
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "b"}, "spec": spec}
    assert Network((policy,)).allows(pod("a", a="x"), pod("b", a="x"), 1) is verdict
