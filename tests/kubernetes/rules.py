"""What must hold of a manifest beyond its schema: values of enums, what selects and is mounted, who the containers run as.

`problems` finds what the published schemas let pass; `check` is both. Kinds without a schema (custom resources) get the rules only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import kubernetes_validate

Manifest = dict[str, Any]

VERSIONS = ("1.34", "1.36", "1.37")
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
WHOLE = re.compile(r"[1-9]\d*")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")

# Field to the values that it may have, wherever it stands; `type` means too many things to be one of them.
ENUMS: dict[str, set[str]] = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "completionMode": {"NonIndexed", "Indexed"},
    "podReplacementPolicy": {"TerminatingOrFailed", "Failed"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "unhealthyPodEvictionPolicy": {"IfHealthyBudget", "AlwaysAllow"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "sessionAffinity": {"None", "ClientIP"},
    "externalTrafficPolicy": {"Cluster", "Local"},
    "internalTrafficPolicy": {"Cluster", "Local"},
    "ipFamilyPolicy": {"SingleStack", "PreferDualStack", "RequireDualStack"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "scheme": {"HTTP", "HTTPS"},
    "medium": {"", "Memory", "HugePages"},
    "volumeMode": {"Filesystem", "Block"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
    "selectPolicy": {"Max", "Min", "Disabled"},
}
# Where `type` and other words that mean several things stand, by the end of the path.
ENUMS_AT: dict[tuple[str, ...], set[str]] = {
    ("strategy", "type"): {"Recreate", "RollingUpdate"},
    ("updateStrategy", "type"): {"OnDelete", "RollingUpdate"},
    ("seccompProfile", "type"): {"RuntimeDefault", "Localhost", "Unconfined"},
    ("onExitCodes", "operator"): {"In", "NotIn"},
    ("onPodConditions", "status"): {"True", "False", "Unknown"},
    ("rules", "action"): {"FailJob", "FailIndex", "Ignore", "Count"},
    ("tolerations", "operator"): {"Exists", "Equal"},
    ("matchExpressions", "operator"): {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"},
    ("spec", "policyTypes"): {"Ingress", "Egress"},
    ("spec", "accessModes"): {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
}
RESTART = {"Deployment": {"Always"}, "StatefulSet": {"Always"}, "DaemonSet": {"Always"}, "Job": {"Never", "OnFailure"}}
# What `restricted` allows, of everything that a pod may mount.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
HOST = ("hostNetwork", "hostPID", "hostIPC")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def check(manifest: Manifest, *, versions: tuple[str, ...] = VERSIONS) -> None:
    """Schema of each version, and our rules. Errors: kubernetes_validate's; AssertionError with every problem."""
    for version in versions:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            assert "." in manifest["apiVersion"].partition("/")[0], "only custom resources have no schema"
    found = problems(manifest)
    assert not found, f"{manifest['kind']} {manifest['metadata'].get('name')}: " + "; ".join(found)


def problems(manifest: Manifest) -> list[str]:
    """In words, with the path; empty: none."""
    found = [*_enums(manifest, ()), *_names(manifest), *_quantities(manifest, ())]
    pod = pod_template(manifest)
    if pod is not None:
        found += [*_labels(pod.get("metadata", {}), "the pod"), *_selected(manifest, pod), *_pod(pod["spec"])]
        found += _restarts(manifest, pod["spec"])
        found += restricted(pod["spec"])
    if manifest["kind"] == "Job":
        found += _job(manifest["spec"])
    return found


def pod_template(manifest: Manifest) -> Manifest | None:
    """Metadata and spec of the pods that it makes; None: it makes none."""
    match manifest["kind"]:
        case "Pod":
            return manifest
        case "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job":
            template: Manifest = manifest["spec"]["template"]
            return template
        case "CronJob":
            inner: Manifest = manifest["spec"]["jobTemplate"]["spec"]["template"]
            return inner
        case _:
            return None


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def restricted(spec: Manifest) -> list[str]:
    """What the pod security standard `restricted` has against a pod."""
    found = [f"{field} is set" for field in HOST if spec.get(field)]
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"} - VOLUMES
        found += [f"volume {volume['name']}: {kind} is not allowed" for kind in kinds]
    pod = spec.get("securityContext", {})
    if pod.get("runAsUser") == 0:
        found.append("the pod runs as root")
    for container in containers(spec):
        found += [f"container {container['name']}: {why}" for why in _restricted(container, pod)]
    return found


def _restricted(container: Manifest, pod: Manifest) -> list[str]:
    own = container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    kept = "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}
    profile = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    wrong = {
        "runAsNonRoot is not true": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True,
        "it runs as root": own.get("runAsUser") == 0,
        "it has no seccomp profile": profile not in ("RuntimeDefault", "Localhost"),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is not False,
        "it keeps capabilities": kept,
        "it is privileged": own.get("privileged"),
        "procMount is not Default": own.get("procMount", "Default") != "Default",
        "it has a port of the host's": any(port.get("hostPort") for port in container.get("ports", [])),
    }
    return [why for why, is_so in wrong.items() if is_so]


def _enums(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _enums(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _enums(inner, path)
    elif path and "annotations" not in path and "labels" not in path and "data" not in path:
        allowed = ENUMS_AT.get(path[-2:], ENUMS.get(path[-1]))
        if allowed is not None and isinstance(value, str) and value not in allowed:
            yield f"{'.'.join(path)}: {value!r} is none of {', '.join(sorted(allowed))}"


def _names(manifest: Manifest) -> Iterator[str]:
    metadata = manifest["metadata"]
    name = metadata.get("name", "")
    form = SERVICE_NAME if manifest["kind"] == "Service" else DNS_LABEL
    if ":" not in name and not all(form.fullmatch(part) for part in name.split(".")):
        yield f"name {name!r} is no DNS name"
    if manifest["kind"] in ("Service", "Namespace", "Job") and not form.fullmatch(name):
        yield f"name {name!r} is no DNS label"
    if "namespace" in metadata and not DNS_LABEL.fullmatch(metadata["namespace"]):
        yield f"namespace {metadata['namespace']!r} is no DNS label"
    yield from _labels(metadata, "it")


def _labels(metadata: Manifest, what: str) -> Iterator[str]:
    for key, value in metadata.get("labels", {}).items():
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            yield f"{what} has a label {key} with a value that is none"
    for key in (*metadata.get("labels", {}), *metadata.get("annotations", {})):
        prefix, slash, name = key.rpartition("/")
        if not LABEL_NAME.fullmatch(name) or (slash and not all(DNS_LABEL.fullmatch(p) for p in prefix.split("."))):
            yield f"{what} has a label or annotation {key!r}, which is no key"
    if any(not isinstance(value, str) for value in metadata.get("annotations", {}).values()):
        yield f"{what} has an annotation that is no text"


def _quantities(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _quantities(inner, path)
    if not isinstance(value, dict):
        return
    limits, requests = (value[name] if isinstance(value.get(name), dict) else {} for name in ("limits", "requests"))
    yield from _amounts(limits, ".".join((*path, "limits")))
    yield from _amounts(requests, ".".join((*path, "requests")))
    for resource, amount in limits.items():
        if "/" in resource and requests.get(resource, amount) != amount:
            yield f"{'.'.join(path)}: {resource} is requested in another quantity than its limit"
    for name, inner in value.items():
        yield from _quantities(inner, (*path, name))


def _amounts(amounts: dict[str, Any], path: str) -> Iterator[str]:
    for resource, amount in amounts.items():
        form = WHOLE if "/" in resource else QUANTITY
        if not isinstance(amount, str) or not form.fullmatch(amount):
            yield f"{path}.{resource}: {amount!r} is no quantity, as a text"


def _selected(manifest: Manifest, pod: Manifest) -> Iterator[str]:
    selector = manifest["spec"].get("selector", {}).get("matchLabels") if manifest["kind"] != "Pod" else None
    if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
        labels = pod.get("metadata", {}).get("labels", {})
        if not selector or not matches(selector, labels):
            yield "its selector does not match its own pods"


def _pod(spec: Manifest) -> Iterator[str]:
    volumes = Counter(volume["name"] for volume in spec.get("volumes", []))
    yield from (f"volume {name} is there twice" for name, count in volumes.items() if count > 1)
    names = Counter(container["name"] for container in containers(spec))
    yield from (f"container {name} is there twice" for name, count in names.items() if count > 1)
    mounted: set[str] = set()
    for container in containers(spec):
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
        yield from (f"container {container['name']}: {why}" for why in _container(container, set(volumes)))
    for volume in volumes.keys() - mounted:
        yield f"volume {volume} is mounted by no container"
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy", "Always") != "Always":
            yield f"init container {container['name']}: its restartPolicy may only be Always"
        if "restartPolicy" not in container and any(probe in container for probe in PROBES):
            yield f"init container {container['name']}: only a sidecar has probes"


def _container(container: Manifest, volumes: set[str]) -> Iterator[str]:
    if not DNS_LABEL.fullmatch(container["name"]):
        yield "its name is no DNS label"
    if not container.get("image"):
        yield "it has no image"
    mounts = container.get("volumeMounts", [])
    yield from (f"no volume {m['name']}" for m in mounts if m["name"] not in volumes)
    if len({mount["mountPath"] for mount in mounts}) < len(mounts):
        yield "two volumes are mounted at one place"
    names = [variable["name"] for variable in container.get("env", [])]
    yield from (f"variable {name} is there twice" for name, count in Counter(names).items() if count > 1)
    yield from (f"{name} is no variable's name" for name in names if not ENV_NAME.fullmatch(name))
    ports = container.get("ports", [])
    yield from (f"{p['name']} is no port's name" for p in ports if "name" in p and not PORT_NAME.fullmatch(p["name"]))
    known = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
    for probe in PROBES:
        yield from (f"{probe}: {why}" for why in _probe(container.get(probe), known))


def _probe(probe: Manifest | None, ports: set[Any]) -> Iterator[str]:
    if probe is None:
        return
    handlers = [name for name in ("httpGet", "tcpSocket", "grpc", "exec") if name in probe]
    if len(handlers) != 1:
        yield "it asks in no way, or in several"
        return
    port = probe[handlers[0]].get("port")
    if handlers[0] != "exec" and port not in ports:
        yield f"the container has no port {port}"
    if handlers[0] == "exec" and not probe["exec"].get("command"):
        yield "it has no command"


def _restarts(manifest: Manifest, spec: Manifest) -> Iterator[str]:
    allowed = RESTART.get(manifest["kind"])
    given = spec.get("restartPolicy", "Always")
    if allowed is not None and given not in allowed:
        yield f"restartPolicy {given} does not go with a {manifest['kind']}"


def _job(spec: Manifest) -> Iterator[str]:
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return
    pod = spec["template"]["spec"]
    if pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy Never"
    if spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podFailurePolicy needs podReplacementPolicy Failed"
    names = {container["name"] for container in containers(pod)}
    for index, rule in enumerate(policy["rules"]):
        yield from (f"podFailurePolicy rule {index + 1}: {why}" for why in _rule(rule, names, spec))


def _rule(rule: Manifest, names: set[str], spec: Manifest) -> Iterator[str]:
    if ("onExitCodes" in rule) == ("onPodConditions" in rule):
        yield "it has exit codes or conditions, one of the two"
    if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
        yield "FailIndex needs backoffLimitPerIndex"
    codes = rule.get("onExitCodes")
    if codes is None:
        return
    values = codes["values"]
    if not values or values != sorted(set(values)) or (codes["operator"] == "In" and 0 in values):
        yield "its exit codes must be ordered, each once, without 0"
    if not set(values) <= set(range(256)):
        yield "an exit code is from 0 to 255"
    if codes.get("containerName") not in {None, *names}:
        yield f"there is no container {codes['containerName']}"
