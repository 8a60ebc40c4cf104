"""deploy/kubernetes: schemas of three versions, and what no schema says: that names lead somewhere, pods are safe, and settings exist."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cli.main import app
from gateway.app import LINGER_S, ROUTES, SHUTDOWN_S
from services.__main__ import ROLES
from services.kit.settings import Runner, Settings, environment_names
from services.metadata.scaling import KEDAS_OWN, OWN_RUNNER, read_wishes
from services.runner.loop import DRAIN_MARGIN_S
from services.runner.runtimes.registry import RUNTIMES
from services.runner.server import CLOSE_S
from tests.cli.support import cli
from tests.deploy.files import ROOT, dockerfile
from tests.deploy.kube import ENGINES, FOLDER, PLATFORM, TOPS, named, of_kind, published, rendered, workloads
from tests.deploy.kustomize import Object, Unknown, identity, render
from tests.kubernetes import rules

EVERYTHING = [pytest.param(one, id=":".join([top, *identity(one)[1:]])) for top in TOPS for one in rendered(top)]
WORKLOADS = [pytest.param(top, *pair, id=f"{top}:{identity(pair[0])[3]}") for top in TOPS for pair in workloads(top)]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
SERVER_GRACE_S = 5.0  # services.kit.server.serving: calls that are under way
# Variables of other people's images.
OTHERS = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGDATA"} | {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}
OTHERS |= {"USER_ID", "PASSWORD", "MC_CONFIG_DIR", "MC_HOST_store"}
CUSTOM = {"keda.sh", "kueue.x-k8s.io"}
# Secrets that the page has people make: in a command, in its loop over places, in the table.
CREATED = re.compile(
    r"create secret generic ([\w-]+)|aibrix-(?:batch|engines|storage)/([\w-]+)|^\| `(aibrix-[\w-]+)`", re.MULTILINE
)


def complete(one: Object) -> Object:
    """With the volumes that a StatefulSet's claims become."""
    made = copy.deepcopy(one)
    for claim in made.get("spec", {}).get("volumeClaimTemplates", []):
        name = claim["metadata"]["name"]
        volume = {"name": name, "persistentVolumeClaim": {"claimName": name}}
        made["spec"]["template"]["spec"]["volumes"].append(volume)
    return made


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
@pytest.mark.parametrize("top", TOPS)
def test_the_renderer_makes_what_kustomize_makes(top: str) -> None:
    said = subprocess.run(["kubectl", "kustomize", str(FOLDER / top)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    real = {identity(one): one for one in yaml.safe_load_all(said.stdout)}
    assert {identity(one): one for one in rendered(top)} == real


@pytest.mark.parametrize(
    "said",
    [
        {"namePrefix": "x-"},
        {
            "resources": [],
            "patches": [{"patch": "- {op: test, path: /kind, value: ConfigMap}", "target": {"kind": "."}}],
        },
        {"images": [{"name": "a", "digest": "sha256:00"}]},
        {"configMapGenerator": [{"name": "a", "namespace": "b", "literals": ["c=d"]}]},
        {"configMapGenerator": [{"name": "a", "namespace": "b", "behavior": "merge"}]},
        {"kind": "Component"},
    ],
)
def test_the_renderer_refuses_what_it_does_not_know(tmp_path: Path, said: dict[str, Any]) -> None:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(head | said))
    with pytest.raises(Unknown):
        render(tmp_path)


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_schemas_and_rules(manifest: Object) -> None:
    rules.check(complete(manifest))
    if manifest["apiVersion"].partition("/")[0] in CUSTOM:
        jsonschema.validate(manifest, published()[f"{manifest['apiVersion']}/{manifest['kind']}"])


def test_the_published_schemas_refuse_a_wrong_field_and_a_wrong_value() -> None:
    schema = published()["keda.sh/v1alpha1/ScaledObject"]
    scaled = named("overlays/example", "ScaledObject", "runner")
    for change in ({"minReplicas": 1}, {"pollingInterval": "15"}, {"fallback": {"failureThreshold": 1}}):
        wrong = scaled | {"spec": scaled["spec"] | change}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("top", TOPS)
def test_what_is_named_is_there_or_made_by_the_page(top: str) -> None:
    there = {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in rendered(top)}
    namespaces = {one["metadata"]["name"] for one in of_kind(top, "Namespace")}
    by_hand = {name for found in CREATED.findall(PAGE) for name in found if name}
    for one in rendered(top):
        assert one["metadata"].get("namespace", PLATFORM) in namespaces
    for one, template in workloads(top):
        namespace, pod = one["metadata"]["namespace"], template["spec"]
        assert ("ServiceAccount", namespace, pod["serviceAccountName"]) in there
        for kind, name in references(pod):
            assert (kind, namespace, name) in there or (kind == "Secret" and name in by_hand), (kind, name)


def references(value: Any) -> set[tuple[str, str]]:
    """ConfigMaps and Secrets that a pod names."""
    found: set[tuple[str, str]] = set()
    if isinstance(value, list):
        return found.union(*map(references, value))
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= references(inner)
            if key in ("configMapRef", "configMapKeyRef", "configMap"):
                found.add(("ConfigMap", inner["name"]))
            if key in ("secretRef", "secretKeyRef"):
                found.add(("Secret", inner["name"]))
            if key == "secret":
                found.add(("Secret", inner["secretName"]))
    return found


@pytest.mark.parametrize("top", TOPS)
def test_no_secret_is_written_down(top: str) -> None:
    assert of_kind(top, "Secret") == []
    for one in of_kind(top, "ConfigMap"):
        assert not [key for key in one["data"] if re.search("SECRET_|ACCESS_KEY|PASSWORD|API_KEY|DATABASE_URL", key)]
    for _, template in workloads(top):
        for container in rules.containers(template["spec"]):
            for variable in container.get("env", []):
                if re.search("SECRET|ACCESS_KEY|PASSWORD|API_KEY$|DATABASE_URL|ROOT_USER", variable["name"]):
                    allowed = {"AIBRIX_KUBERNETES__WORKER_SECRET"}
                    assert variable["name"] in allowed or "secretKeyRef" in variable["valueFrom"], variable


@pytest.mark.parametrize("top", TOPS)
def test_settings_exist_and_hold_values_that_load(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = environment_names()
    for config_map in of_kind(top, "ConfigMap"):
        if "templates.yaml" not in config_map["data"]:
            assert config_map["data"].keys() <= known.keys()
    for one, template in workloads(top):
        for container in rules.containers(template["spec"]):
            given = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
            assert given.keys() <= known.keys() | OTHERS, one["metadata"]["name"]
            for source in container.get("envFrom", []):
                given |= named(top, "ConfigMap", source["configMapRef"]["name"], one["metadata"]["namespace"])["data"]
            with monkeypatch.context() as patched:
                for name, value in given.items():
                    if name in known and value is not None:
                        patched.setenv(name, value)
                Settings()


@pytest.mark.parametrize("top", TOPS)
def test_addresses_lead_to_services_whose_pods_listen_there(top: str) -> None:
    settings = {one["metadata"]["name"].rpartition("-")[0]: one["data"] for one in of_kind(top, "ConfigMap")}
    addresses = {key: value for key, value in settings["aibrix-settings"].items() if key.endswith("_ADDR")}
    worker = named(top, "ConfigMap", "aibrix-worker", ENGINES)["data"]
    assert len(addresses) == 3
    for key, address in [*addresses.items(), ("AIBRIX_METADATA_ADDR", worker["AIBRIX_METADATA_ADDR"])]:
        role = key.removeprefix("AIBRIX_").removesuffix("_ADDR").lower()
        host, _, port = address.partition(":")
        assert host.split(".")[0] == role
        assert host in (role, f"{role}.{PLATFORM}.svc")
        (service_port,) = named(top, "Service", role)["spec"]["ports"]
        assert service_port["port"] == int(port)


@pytest.mark.parametrize("top", TOPS)
def test_services_lead_to_ports_of_pods(top: str) -> None:
    for service in of_kind(top, "Service"):
        namespace = service["metadata"]["namespace"]
        behind = [
            template["spec"]
            for one, template in workloads(top)
            if one["metadata"]["namespace"] == namespace
            and rules.matches(service["spec"]["selector"], template["metadata"]["labels"])
        ]
        assert len(behind) == 1, service["metadata"]["name"]
        names = {port["name"] for container in behind[0]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


@pytest.mark.parametrize("top", TOPS)
def test_every_role_listens_where_the_image_says(top: str) -> None:
    image = dockerfile()[-1].env()
    for role in ROLES:
        deployment = named(top, "Deployment", role)
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["--role", role]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        listen = image[f"AIBRIX_{role.upper()}__LISTEN"].rpartition(":")[2]
        assert ports.pop("http" if role == "gateway" else "grpc") == int(listen)
        given = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        metrics = given.get(f"AIBRIX_{role.upper()}__METRICS_LISTEN", "")
        assert ports == ({"metrics": int(metrics.rpartition(":")[2])} if metrics else {})


@pytest.mark.parametrize(("top", "one", "template"), WORKLOADS)
def test_pods_are_safe_bounded_and_watched(top: str, one: Object, template: Object) -> None:
    pod = template["spec"]
    assert pod["enableServiceLinks"] is False
    assert "automountServiceAccountToken" in pod
    assert pod["securityContext"]["runAsUser"] >= 70
    for container in rules.containers(pod):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["imagePullPolicy"] == "IfNotPresent"
        assert re.search(r":(?!latest)[\w.-]+$", container["image"])
        resources = container["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert resources["limits"].keys() == {"memory"}
        if one["kind"] != "Job":
            assert all(probe in container for probe in rules.PROBES)
    for volume in pod["volumes"]:
        assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})


@pytest.mark.parametrize("top", TOPS)
def test_only_what_changes_nothing_on_the_root_is_ours(top: str) -> None:
    """Our image writes to its home and to /tmp, and both are volumes."""
    home = dockerfile()[-1].all("WORKDIR")[0].text
    for role in ROLES:
        (container,) = named(top, "Deployment", role)["spec"]["template"]["spec"]["containers"]
        assert {home, "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    user = int(dockerfile()[-1].all("USER")[0].text.partition(":")[0])
    assert named(top, "Deployment", "runner")["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == user


@pytest.mark.parametrize("top", TOPS)
def test_all_of_ours_have_one_image_and_the_runner_passes_it_on(top: str) -> None:
    images = {
        container["image"]
        for one, template in workloads(top)
        if one["metadata"]["namespace"] == PLATFORM
        for container in rules.containers(template["spec"])
    }
    (container,) = named(top, "Deployment", "runner")["spec"]["template"]["spec"]["containers"]
    passed_on = {one["value"] for one in container["env"] if one["name"] == "AIBRIX_KUBERNETES__IMAGE"}
    assert images == passed_on
    assert len(images) == 1


@pytest.mark.parametrize("top", TOPS)
def test_a_disruption_budget_never_holds_up_a_drain(top: str) -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in of_kind(top, "PodDisruptionBudget")}
    assert budgets.keys() == ROLES.keys()
    for role, budget in budgets.items():
        assert "minAvailable" not in budget
        assert budget["maxUnavailable"] in (1, "25%")  # of one replica a part is rounded up to it
        labels = named(top, "Deployment", role)["spec"]["template"]["metadata"]["labels"]
        assert rules.matches(budget["selector"]["matchLabels"], labels)
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("top", TOPS)
def test_rollouts_never_have_fewer_and_pods_have_the_time_to_end(top: str) -> None:
    for role in ROLES:
        spec = named(top, "Deployment", role)["spec"]
        assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        pod = spec["template"]["spec"]
        before = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert (before > 0) == (role != "runner")  # nobody is sent to a runner
        if role == "runner":
            needed = Runner().drain_s + DRAIN_MARGIN_S + SERVER_GRACE_S + CLOSE_S
        else:
            needed = SHUTDOWN_S + LINGER_S if role == "gateway" else SERVER_GRACE_S
        assert pod["terminationGracePeriodSeconds"] >= before + needed + 15, role


def test_probes_ask_what_roles_answer() -> None:
    for role in ROLES:
        (container,) = named("base", "Deployment", role)["spec"]["template"]["spec"]["containers"]
        ready, lives = container["readinessProbe"], container["livenessProbe"]
        if role == "gateway":
            assert (ready["httpGet"]["path"], lives["httpGet"]["path"]) == ("/readyz", "/healthz")
            assert {"/readyz", "/healthz"} <= {route.path for route in ROUTES}
        else:
            assert "service" not in ready["grpc"], "the empty name is for the whole server"
            assert ready["grpc"] == lives["grpc"] == container["startupProbe"]["grpc"]
        start = container["startupProbe"]
        has_tables = any(one["name"].endswith("DATABASE_URL") for one in container["env"])
        assert start["periodSeconds"] * start["failureThreshold"] >= (300 if has_tables else 60)


def test_what_scales_is_not_counted_in_the_deployment() -> None:
    for top in TOPS:
        assert "replicas" not in named(top, "Deployment", "gateway")["spec"]
        target = named(top, "HorizontalPodAutoscaler", "gateway")["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", "gateway")
    assert "replicas" not in named("overlays/example", "Deployment", "runner")["spec"]
    assert named("base", "Deployment", "runner")["spec"]["replicas"] == 2


def test_the_scaled_object_says_what_the_scaler_reads() -> None:
    scaled = named("overlays/example", "ScaledObject", "runner")["spec"]
    (trigger,) = scaled["triggers"]
    wishes = read_wishes(trigger["metadata"])
    assert trigger["type"] == "external-push"
    assert set(wishes.targets) == RUNTIMES.keys() | OWN_RUNNER
    assert wishes.slots_per_runner == Runner().slots
    assert trigger["metadata"]["scalerAddress"] == f"metadata.{PLATFORM}.svc:50051"
    assert "scalerAddress" in KEDAS_OWN
    assert scaled["scaleTargetRef"]["name"] == "runner"
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    down = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"]
    grace = named("base", "Deployment", "runner")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert min(policy["periodSeconds"] for policy in down) >= grace, "the next ones go when the last ones are gone"


def test_migrations_are_a_job_that_needs_nothing_but_its_secret() -> None:
    job = named("base", "Job", "migrate")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["aibrix-batch", "migrate"]
    assert "migrate" in [one.callback.__name__ for one in app.registered_commands if one.callback]
    assert "envFrom" not in container, "what is applied by itself would not find it"
    keys = {one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"]}
    assert keys == {"aibrix-database"}
    with_tables = {one["name"] for one in container["env"]}
    for role in ROLES:
        for variable in named("base", "Deployment", role)["spec"]["template"]["spec"]["containers"][0]["env"]:
            if variable["name"].endswith("DATABASE_URL"):
                assert variable["name"] in with_tables


def test_the_templates_of_the_overlays_are_valid() -> None:
    files = sorted(FOLDER.glob("overlays/*/templates.yaml"))
    assert len(files) == 2
    done = cli("template", "validate", *files)
    assert done.returncode == 0, done.stdout
    for file in files:
        source = named(f"overlays/{file.parent.name}", "ConfigMap", "aibrix-templates")
        assert source["data"]["templates.yaml"] == file.read_text()


def test_namespaces_enforce_restricted() -> None:
    for top in TOPS:
        for one in of_kind(top, "Namespace"):
            assert one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_walk_through_names_what_is_there() -> None:
    for folder in re.findall(r"deploy/kubernetes/[\w/.-]*[\w-]", PAGE):
        assert (ROOT / folder).exists(), folder
    parts = [*FOLDER.glob("overlays/*"), *FOLDER.glob("components/*")]
    assert [part.name for part in parts if f"`{part.parent.name}/{part.name}`" not in PAGE] == []
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"aibrix-batch:{version[1]}" in PAGE
    assert named("base", "Job", "migrate")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(version[1])
