"""Requests per second through the SSH forward of a runtime against the same engine without it, both through the platform."""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp
import asyncssh

from benchmarks import support
from benchmarks.dispatch import get_batch
from benchmarks.support import Row

COUNT = 10_000
CONCURRENCY = 256
RUNS = 5
# The mock answers with the beginning of the question, cut to eight words: so answers are of 2 KB.
LONG_WORDS = " ".join(["x" * 255] * 7)
SSHD = ("/usr/sbin/sshd", "/usr/local/sbin/sshd")


# The mock engine with a key at its door, as vLLM has one: the runtime sends nothing to an engine that lets everybody in.
KEYED = """
import os
from aiohttp import web
from services.runner.engines import mock

answer, key = mock.MockEngine.answer, "Bearer " + os.environ["VLLM_API_KEY"]

async def guarded(self, request):
    if request.path.startswith("/v1") and request.headers.get("Authorization") != key:
        return web.json_response({"error": "Unauthorized"}, status=401)
    return await answer(self, request)

mock.MockEngine.answer = guarded
mock.main(mock.parse_arguments())
"""


@dataclass(frozen=True)
class Sshd:
    port: int
    host_key: str
    key_file: Path


async def measure(folder: Path, count: int = COUNT) -> list[Row]:
    source, port = folder / "ssh.jsonl", support.free_port()
    support.chat_lines(source, count, LONG_WORDS)
    async with machine(folder / "machine") as there:
        settings = {
            "AIBRIX_BATCH_SSH_KEY_FILE": str(there.key_file),
            "AIBRIX_SSH__ENGINE_PORT": str(port),
            "AIBRIX_EXTERNAL__ALLOWED_HOSTS": "*",
            "AIBRIX_RUNNER__SEGMENT_SECONDS": "0.2",
        }
        forwarded = {
            "target": "RunPod",
            "options": {
                "host": "127.0.0.1",
                "ssh_port": there.port,
                "ssh_user": getpass.getuser(),
                "host_key": there.host_key,
            },
        }
        async with (
            support.engine(folder) as url,
            support.platform(folder, **settings) as server,
            aiohttp.ClientSession() as session,
        ):
            direct = {"target": "External", "options": {"base_url": url}}
            file_id = await support.upload(session, server.url, source)
            pairs = [
                (await run(session, server, file_id, direct), await run(session, server, file_id, forwarded))
                for _ in range(RUNS)
            ]
    direct_rate, through = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    ratio = median(second / first for first, second in pairs)
    name = f"dispatch through an SSH forward, 2 KB answers, {CONCURRENCY} in flight"
    rates = f"{through:,.0f} req/s", f"{direct_rate:,.0f} req/s"
    return [Row(name, *rates, f"{ratio:.2f}", ">= 0.50", ratio >= 0.5)]


async def run(
    session: aiohttp.ClientSession, server: support.Platform, file_id: str, runtime: Mapping[str, object]
) -> float:
    """Requests per second."""
    payload = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "aibrix": {
            "runtime": runtime,
            "client": {"max_concurrency": CONCURRENCY, "adaptive_concurrency": False},
        },
    }
    async with session.post(f"{server.url}/v1/batches", json=payload) as answer:
        batch = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"create failed: {batch}")
    # From the first lines that are committed on: the start of an engine is no part of the dispatch.
    while not (first := await get_batch(server.metadata, batch["id"])).completed_count:
        await asyncio.sleep(0.02)
    began = time.time()
    await support.until_terminal(session, server.url, batch["id"])
    done = await get_batch(server.metadata, batch["id"])
    if done.completed_count != done.total_count:
        raise RuntimeError(f"not every request succeeded: {done.failed_count} failed")
    return (done.total_count - first.completed_count) / (done.finalizing_time.ToNanoseconds() / 1e9 - began)


@asynccontextmanager
async def machine(folder: Path) -> AsyncIterator[Sshd]:
    """OpenSSH's server on loopback, where `vllm` is the mock engine."""
    program = next((path for path in (shutil.which("sshd"), *SSHD) if path and Path(path).exists()), None)
    if program is None:
        raise RuntimeError("OpenSSH's sshd is not installed here")
    bin, home = folder / "bin", folder / "home"
    bin.mkdir(parents=True)
    home.mkdir()
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host_key", "client_key")}
    for name, key in keys.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(key.export_private_key())
    (folder / "authorized_keys").write_bytes(keys["client_key"].export_public_key())
    vllm = bin / "vllm"
    root = shlex.quote(str(Path(__file__).parents[1]))
    vllm.write_text(
        f'#!/bin/sh\nshift 2\ncd {root} && exec {shlex.quote(sys.executable)} -c {shlex.quote(KEYED)} "$@"\n'
    )
    vllm.chmod(0o755)
    port = support.free_port()
    path = f"{bin}:{os.environ['PATH']}"
    python_path = os.environ.get("PYTHONPATH", "")
    options = f"""
        ListenAddress 127.0.0.1:{port}
        HostKey {folder}/host_key
        AuthorizedKeysFile {folder}/authorized_keys
        SetEnv "PATH={path}" "HOME={home}" "PYTHONPATH={python_path}"
        PermitRootLogin prohibit-password
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        StrictModes no
        UsePAM no
        PidFile none
    """
    (folder / "sshd_config").write_text(textwrap.dedent(options))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            program, "-D", "-e", "-f", str(folder / "sshd_config"), stdout=log, stderr=log
        )
    try:
        yield Sshd(port, keys["host_key"].export_public_key().decode().strip(), folder / "client_key")
    finally:
        server.terminate()
        await server.wait()
