"""What the pods of Deployments and Jobs share: engine, downloader, worker, volumes and who they run as.

All of it satisfies the pod security standard `restricted`.
"""

from __future__ import annotations

import math
from typing import Any

from services.runner.runtimes.kubernetes.plan import CACHE, LOOPBACK, PORT, Plan

Manifest = dict[str, Any]
COMPONENT_LABEL = "app.kubernetes.io/component"
# The user of vLLM's own image for non-root; of other images nobody in particular.
ENGINE_USER = 2000
# The user in our image.
OWN_USER = 10_001
HOME = "/home/engine"
OWN_HOME = "/var/lib/aibrix"
# Kubernetes' own place for them.
LAST_WORDS = "/dev/termination-log"

HEALTH_TIMEOUT_S = 5
ASK = (
    "import http.client, sys; "
    f"c = http.client.HTTPConnection('{LOOPBACK}', {PORT}, timeout={HEALTH_TIMEOUT_S - 1}); "
    "c.request('GET', sys.argv[1]); sys.exit(c.getresponse().status >= 400)"
)
STARTUP_PERIOD_S = 5
READINESS_PERIOD_S = 5
# An engine that reads a long prompt may not answer for a while: a minute, until it gets no more requests.
READINESS_FAILURES = 12
# What is killed loses its requests, and loads its weights again: only after five minutes of silence.
LIVENESS_PERIOD_S = 30
LIVENESS_TIMEOUT_S = 20
LIVENESS_FAILURES = 10


def metadata(plan: Plan, component: str) -> Manifest:
    return {"name": plan.name, "namespace": plan.namespace, **pod_metadata(plan, component)}


def pod_metadata(plan: Plan, component: str) -> Manifest:
    return {"labels": {**plan.labels, COMPONENT_LABEL: component}, "annotations": dict(plan.annotations)}


def pod_spec(plan: Plan) -> Manifest:
    """Without containers and `restartPolicy`."""
    options = plan.options
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": plan.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": ENGINE_USER,
            "runAsGroup": ENGINE_USER,
            "fsGroup": ENGINE_USER,
            # A claim with a terabyte of models is not walked through at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": _volumes(plan),
    }
    if options.service_account is not None:
        spec["serviceAccountName"] = options.service_account
    if options.node_selector:
        spec["nodeSelector"] = dict(options.node_selector)
    if tolerations := _tolerations(plan):
        spec["tolerations"] = tolerations
    if options.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    return spec


def _tolerations(plan: Plan) -> list[Manifest]:
    """Machines with GPUs are often kept for pods that ask for one, by a taint that is called as the resource."""
    of_gpus = [{"key": name, "operator": "Exists", "effect": "NoSchedule"} for name in plan.devices]
    given = [one.model_dump(by_alias=True, exclude_none=True) for one in plan.options.tolerations]
    return of_gpus + [one for one in given if one not in of_gpus]


def engine(plan: Plan) -> Manifest:
    """Without probes."""
    made: Manifest = {
        "name": "engine",
        "image": plan.image,
        "command": list(plan.command),
        "args": [_literal(word) for word in plan.arguments],
        "workingDir": HOME,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": _engine_env(plan),
        "volumeMounts": _engine_mounts(plan),
        "securityContext": _security(),
    }
    if plan.devices:
        made["resources"] = {"limits": dict(plan.devices), "requests": dict(plan.devices)}
    if plan.secret is not None and plan.download is None:
        made["envFrom"] = [{"secretRef": {"name": plan.secret}}]
    return made


def downloader(plan: Plan) -> list[Manifest]:
    """The init container that brings the model, if one is needed."""
    if plan.download is None:
        return []
    made: Manifest = {
        "name": "download",
        "image": plan.own_image,
        "command": ["aibrix-batch", "download-model"],
        "args": [_literal(plan.download.uri), plan.download.folder],
        "volumeMounts": [{"name": "cache", "mountPath": CACHE}, {"name": "tmp", "mountPath": "/tmp"}],
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _security(read_only=True),
    }
    if plan.secret is not None:
        made["envFrom"] = [{"secretRef": {"name": plan.secret}}]
        made["env"] = [_from_secret(name, plan.secret, key) for name, key in S3_KEYS.items()]
    return [made]


# Names that Secrets for the earlier AIBrix have, beside those that are variables themselves.
S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "access-key-id",
    "AWS_SECRET_ACCESS_KEY": "secret-access-key",
    "AWS_REGION": "region",
}


def worker(plan: Plan) -> Manifest:
    return {
        "name": "worker",
        "image": plan.own_image,
        "command": ["aibrix-batch"],
        "args": ["serve", "--role", "runner", "--batch", _literal(plan.key)],
        "envFrom": [
            {"configMapRef": {"name": plan.worker_config}},
            {"secretRef": {"name": plan.worker_secret}},
        ],
        "env": [
            {"name": "AIBRIX_DATA_DIR", "value": f"{OWN_HOME}/data"},
            {"name": "AIBRIX_RUNNER__SLOTS", "value": "1"},
            # Whatever the ConfigMap says: the pod's grace period is made for it.
            {"name": "AIBRIX_RUNNER__DRAIN_S", "value": f"{plan.drain_s:g}"},
            {"name": "AIBRIX_WORKER__ENGINE_URL", "value": f"http://{LOOPBACK}:{PORT}"},
            {"name": "AIBRIX_WORKER__ENGINE_HEALTH", "value": _literal(plan.health_path)},
            {"name": "AIBRIX_WORKER__ENGINE_READY_S", "value": str(plan.ready_timeout_s)},
            {"name": "AIBRIX_WORKER__LAST_WORDS_FILE", "value": LAST_WORDS},
        ],
        "volumeMounts": [{"name": "worker", "mountPath": OWN_HOME}, {"name": "worker-tmp", "mountPath": "/tmp"}],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {**_security(read_only=True), "runAsUser": OWN_USER, "runAsGroup": OWN_USER},
    }


def probes(plan: Plan) -> Manifest:
    """Of an engine in a Deployment. The first one gives it the whole time that the template gives."""
    startup = {
        "httpGet": _health(plan),
        "periodSeconds": STARTUP_PERIOD_S,
        "timeoutSeconds": HEALTH_TIMEOUT_S,
        "failureThreshold": math.ceil(plan.ready_timeout_s / STARTUP_PERIOD_S) + 1,
    }
    liveness = {
        "httpGet": _health(plan),
        "periodSeconds": LIVENESS_PERIOD_S,
        "timeoutSeconds": LIVENESS_TIMEOUT_S,
        "failureThreshold": LIVENESS_FAILURES,
    }
    return {"startupProbe": startup, "readinessProbe": readiness(plan), "livenessProbe": liveness}


def readiness(plan: Plan) -> Manifest:
    """An engine on loopback can be asked only from inside: the kubelet's own requests go to the pod's address."""
    return {
        **({"exec": {"command": _asking(plan)}} if plan.loopback else {"httpGet": _health(plan)}),
        "periodSeconds": READINESS_PERIOD_S,
        "timeoutSeconds": HEALTH_TIMEOUT_S,
        "failureThreshold": READINESS_FAILURES,
    }


def _asking(plan: Plan) -> list[str]:
    """With what is in the engine's image: Python, or curl in llama.cpp's, whose own health check uses it."""
    if plan.engine == "llamacpp":
        url = f"http://{LOOPBACK}:{PORT}{plan.health_path}"
        return ["curl", "-fsS", "-m", str(HEALTH_TIMEOUT_S - 1), "-o", "/dev/null", "--noproxy", "*", _literal(url)]
    return ["python3", "-c", ASK, _literal(plan.health_path)]


def _health(plan: Plan) -> Manifest:
    return {"path": plan.health_path, "port": "http"}


def _engine_env(plan: Plan) -> list[Manifest]:
    """Places that can be written, since the user owns nothing in the image, and the token for the model's source."""
    values = {
        "HOME": HOME,
        # Python asks for the user's name, and in most images there is no such user.
        "USER": "engine",
        "LOGNAME": "engine",
        "TMPDIR": "/tmp",
        "HF_HOME": f"{CACHE}/huggingface",
        "LLAMA_CACHE": f"{CACHE}/llama.cpp",
        # What is compiled is not shared: it is code.
        "VLLM_CACHE_ROOT": f"{HOME}/.cache/vllm",
        "TRITON_CACHE_DIR": f"{HOME}/.cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/.cache/inductor",
    }
    env: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    if plan.secret is not None:
        # With a downloader the engine does not need the rest of the Secret.
        key = "token" if plan.download is None else "HF_TOKEN"
        env.append(_from_secret("HF_TOKEN", plan.secret, key))
    return env


def _from_secret(name: str, secret: str, key: str) -> Manifest:
    """It has no effect if the Secret lacks the key."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}


def _engine_mounts(plan: Plan) -> list[Manifest]:
    cache: Manifest = {"name": "cache", "mountPath": CACHE}
    mounts = [cache, {"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}]
    if plan.shares_memory:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return mounts


def _volumes(plan: Plan) -> list[Manifest]:
    claim = plan.cache_claim
    cache: Manifest = {"persistentVolumeClaim": {"claimName": claim}} if claim is not None else {"emptyDir": {}}
    volumes = [{"name": "cache", **cache}, {"name": "home", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    if plan.shares_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": plan.shm_size}})
    return volumes


def _security(*, read_only: bool = False) -> Manifest:
    """What an image can be expected to stand. Engines write to places in theirs that nobody has listed."""
    made: Manifest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {**made, "readOnlyRootFilesystem": True} if read_only else made


def _literal(word: str) -> str:
    """Kubernetes puts variables in place of `$(NAME)`: a template's word must not become the Secret's token."""
    return word.replace("$", "$$")
