"""deploy/kubernetes, run: every role as a process with the environment of its pod, two of each, over PostgreSQL, S3 and a cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import asyncssh
import openai
import orjson
import pytest
from aiohttp import web

from gateway.auth import new_key
from tests.deploy import roles
from tests.deploy.kube import ENGINES, PLATFORM, named
from tests.deploy.roles import Pod
from tests.deploy.test_kubernetes_access import CALLS
from tests.e2e.processes import Witness, eventually, free_port
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers
from tests.kubernetes.faults import Asked
from tests.kubernetes.store import Object

TOP = "overlays/example"
TEMPLATE = "llama3-8b"
LINES = 40
# In the order in which they are started here, though any will do.
STARTED = ("console", "metadata", "planner", "runner", "gateway")
ADDRESSED = ("console", "metadata", "planner")
ENDED = ("completed", "failed", "expired", "cancelled")


@asynccontextmanager
async def an_engine() -> AsyncIterator[Witness]:
    """With a health path, which a worker asks."""
    engine = Witness(latency_s=0.01)

    async def healthy(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    app.router.add_get("/health", healthy)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    engine.url = site.name
    try:
        yield engine
    finally:
        await runner.cleanup()


class Platform:
    """Two pods of each role, and what is outside of them: a cluster, an engine, a node that runs workers."""

    def __init__(
        self, folder: Path, cluster: Cluster, engine: Witness, postgres_url: str, objects: dict[str, str]
    ) -> None:
        self.folder = folder
        self.cluster = cluster
        self.engine = engine
        self.key, line = new_key("default", "test")
        (folder / "api_keys").write_text(line + "\n")
        cluster.write_kubeconfig(folder / "kubeconfig")
        pair, key = asyncssh.generate_private_key("ssh-ed25519"), folder / "id_ed25519"
        pair.write_private_key(str(key))
        key.chmod(0o400)
        store = {
            "AIBRIX_OBJECTS__ACCESS_KEY_ID": objects["access_key_id"],
            "AIBRIX_OBJECTS__SECRET_ACCESS_KEY": objects["secret_access_key"],
        }
        clouds = {"RUNPOD_API_KEY": "key", "RUNPOD_SSH_PUBLIC_KEY": pair.export_public_key().decode().strip()}
        self.secrets = {"aibrix-database": {"url": postgres_url}, "aibrix-clouds": clouds}
        self.secrets |= dict.fromkeys(("aibrix-objects", "aibrix-worker"), store)
        self.places = {
            "AIBRIX_OBJECTS__URL": objects["url"],
            "AIBRIX_OBJECTS__ENDPOINT": objects["endpoint"],
            "AIBRIX_API_KEYS_FILE": str(folder / "api_keys"),
            "AIBRIX_BATCH_SSH_KEY_FILE": str(key),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "RUNPOD_BASE_URL": "http://127.0.0.1:9/v2",  # where nobody is
        }
        """What is elsewhere on this machine."""
        self.pods = {
            name: [roles.role(TOP, name, number, folder, self.secrets) for number in (0, 1)] for name in STARTED
        }
        self.clients: list[openai.AsyncOpenAI] = []
        self.workers: list[tuple[Pod, asyncio.Task[None]]] = []
        self.controllers = Controllers(cluster)
        self.controllers.on_pod = self._run

    def all(self) -> list[Pod]:
        return [pod for pods in self.pods.values() for pod in pods]

    def address(self, role: str, number: int) -> str:
        return self.pods[role][number].env[f"AIBRIX_{role.upper()}__LISTEN"]

    async def start(self) -> None:
        for name, pods in self.pods.items():
            for number, pod in enumerate(pods):
                # A client has one connection, to one pod. Those of one chain of calls have not all the same number.
                other = number if name == "gateway" else 1 - number
                pod.env |= self.places
                pod.env |= {f"AIBRIX_{role.upper()}_ADDR": self.address(role, other) for role in ADDRESSED}
        await asyncio.gather(*(pod.start() for pod in self.all()))
        await asyncio.gather(*(pod.serves() for pod in self.all()))

    async def stop(self) -> dict[str, int]:
        """In the reverse order of starts; exit codes."""
        codes = {}
        for name in reversed(STARTED):
            for pod, code in zip(
                self.pods[name], await asyncio.gather(*(pod.stop() for pod in self.pods[name])), strict=True
            ):
                codes[pod.name] = code
        for worker, watched in self.workers:
            await worker.stop()
            await watched
        self.controllers.stop()
        return codes

    def _run(self, pod: Object) -> None:
        """What a node does with a pod: the engine is that of the test, the worker a process with the pod's environment."""
        self.controllers.kubelet.ready(pod, self.engine.url)
        for container in pod["spec"]["containers"]:
            if container["name"] == "worker":
                worker = self._worker(pod["metadata"]["name"], container)
                work = asyncio.get_running_loop().create_task(self._work(pod, worker))
                self.workers.append((worker, work))

    def _worker(self, name: str, container: roles.Container) -> Pod:
        place = self.folder / name
        env = roles.variables(TOP, container, ENGINES, self.secrets) | self.places
        env |= {
            "AIBRIX_DATA_DIR": str(place / "data"),
            "TMPDIR": str(place / "tmp"),
            "AIBRIX_METADATA_ADDR": self.address("metadata", 0),
            "AIBRIX_RUNNER__LISTEN": f"127.0.0.1:{free_port()}",
            "AIBRIX_WORKER__ENGINE_URL": self.engine.url,
            "AIBRIX_WORKER__LAST_WORDS_FILE": str(place / "last-words"),
        }
        return Pod(name, tuple(container["args"]), env, place)

    async def _work(self, pod: Object, worker: Pod) -> None:
        await worker.start()
        assert worker.process is not None
        self.controllers.kubelet.exit(pod, await worker.process.wait())


@pytest.fixture
async def platform(tmp_path: Path, postgres_url: str, s3_objects: dict[str, str]) -> AsyncIterator[Platform]:
    async with Cluster(ENGINES, PLATFORM).running() as cluster, an_engine() as engine, AsyncExitStack() as stack:
        cluster.put("configmaps", named(TOP, "ConfigMap", "aibrix-templates"))
        made = Platform(tmp_path, cluster, engine, postgres_url, s3_objects)
        stack.push_async_callback(made.stop)
        await made.start()
        for number in (0, 1):
            client = openai.AsyncOpenAI(base_url=f"http://{made.address('gateway', number)}/v1", api_key=made.key)
            made.clients.append(await stack.enter_async_context(client))
        yield made


PATH = re.compile(r"/apis?/(?:(?P<group>[a-z0-9.]+)/)?v1/(?:namespaces/(?P<namespace>[^/]+)(?:/|$))?(?P<rest>.*)")
VERBS = {"POST": "create", "DELETE": "delete", "PATCH": "patch"}


def right(asked: Asked) -> tuple[tuple[str, str], str]:
    """What RBAC would be asked about a request: ((namespace, resource), verb)."""
    match = PATH.fullmatch(asked.path)
    assert match is not None, asked.path
    plural, *name = match["rest"].split("/") if match["rest"] else ("namespaces", match["namespace"])
    resource = "/".join([plural, *name[1:]]) + (f".{match['group']}" if match["group"] else "")
    reading = "watch" if asked.is_watch else "get" if name else "list"
    return (match["namespace"], resource), VERBS.get(asked.method, reading)


async def batch(client: openai.AsyncOpenAI, target: str, name: str) -> str:
    lines = [
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": f"{name}:{number}"}]},
        }
        for number in range(LINES)
    ]
    file = await client.files.create(file=("in.jsonl", b"\n".join(map(orjson.dumps, lines))), purpose="batch")
    made = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"aibrix": {"model_template": {"name": TEMPLATE}, "runtime": {"target": target}}},
    )
    return made.id


async def completed(client: openai.AsyncOpenAI, id: str, name: str) -> None:
    async def ended() -> bool:
        return (await client.batches.retrieve(id)).status in ENDED

    await eventually(ended, f"{name} ends")
    found = await client.batches.retrieve(id)
    assert found.status == "completed", found.errors
    text = (await client.files.content(found.output_file_id or "")).content
    answers = {one["custom_id"]: one["response"]["body"]["choices"] for one in map(orjson.loads, text.splitlines())}
    assert {id: choices[0]["message"]["content"] for id, choices in answers.items()} == {
        f"{number}": f"{name}:{number}".upper() for number in range(LINES)
    }


async def test_two_of_each_run_batches_of_both_targets(platform: Platform) -> None:
    names = [f"{target}-{number}" for target in ("Kubernetes", "KubernetesJob") for number in (0, 1)]
    made = {
        name: await batch(platform.clients[number % 2], name.partition("-")[0], name)
        for number, name in enumerate(names)
    }
    for number, (name, id) in enumerate(made.items()):
        # Asked of the other gateway, which asks another metadata.
        await completed(platform.clients[1 - number % 2], id, name)
    assert len(platform.workers) == 2
    assert set(platform.engine.times().values()) == {1}
    await check_metrics(platform)
    assert await platform.stop() == dict.fromkeys((pod.name for pod in platform.all()), 0)
    for pod in platform.all():
        assert "Traceback" not in pod.log(), pod.log()[-4000:]
    # Nothing was asked of the cluster that the accounts of the pods may not ask.
    rights = {(place, verb) for calls in CALLS.values() for place, verbs in calls.items() for verb in verbs}
    assert {right(asked) for asked in platform.cluster.asked} <= rights


async def check_metrics(platform: Platform) -> None:
    async with aiohttp.ClientSession() as session:
        for name in ("metadata", "planner", "console", "runner"):
            for pod in platform.pods[name]:
                async with session.get(f"http://127.0.0.1:{pod.ports['METRICS_LISTEN']}/metrics") as answer:
                    assert answer.status == 200, name
