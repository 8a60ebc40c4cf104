"""The real gateway over a real metadata server, in this process; and ways to talk to it that no client library has."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai

from gateway import app
from services.kit.objects import open_store
from services.kit.settings import Gateway, Metadata, Settings
from services.metadata import server

BOUNDARY = "b0undary"
NOWHERE = "127.0.0.1:1"
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of an OpenAI body, all four keys of it."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"]
        return error

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


@dataclass
class Front:
    address: str
    settings: Settings
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        chosen: dict[str, Any] = {"api_key": "any", "max_retries": 0, "_strict_response_validation": True} | options
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", **chosen)

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, self.url + path, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, await response.read())

    async def post_json(self, path: str, body: Any, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.call(
            "POST", path, data=io.BytesIO(data), headers={"Content-Type": "application/json"} | headers
        )

    async def post_form(self, path: str, body: bytes, **headers: str) -> Answer:
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return await self.call("POST", path, data=io.BytesIO(body), headers=kind | headers)

    async def upload(self, data: bytes = LINE, name: str = "in.jsonl", **fields: str) -> str:
        parts = [field(name, value) for name, value in ({"purpose": "batch"} | fields).items()]
        answer = await self.post_form("/v1/files", form(*parts, file(data, name)))
        assert answer.status == 200, answer.body
        id: str = answer.json["id"]
        return id

    async def raw(self, data: bytes) -> Answer:
        """Send these bytes as they are; the first answer."""
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            await writer.drain()
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            lines = head.decode().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(lines[0].split()[1]), headers, body)
        finally:
            writer.close()

    async def stored(self) -> set[str]:
        """Keys of the objects that users' bytes are under."""
        store = open_store(self.settings)
        return {info.key for prefix in ("files/", "uploads/") async for info in store.list(prefix)}


def field(name: str, value: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def file(data: bytes, filename: str = "in.jsonl", name: str = "file", extra: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\n{extra}\r\n'
    return head.encode() + data


def form(*parts: bytes, end: bytes = b"--b0undary--\r\n") -> bytes:
    return b"".join(b"--b0undary\r\n" + part + b"\r\n" for part in parts) + end


def settings_for(folder: Path, **gateway: Any) -> Settings:
    return Settings(
        data_dir=folder,
        default_endpoint="http://127.0.0.1:9/v1",
        metadata=Metadata(listen="127.0.0.1:0"),
        gateway=Gateway(listen="127.0.0.1:0", **gateway),
    )


@asynccontextmanager
async def fronting(settings: Settings, console: str = NOWHERE) -> AsyncIterator[Front]:
    async with server.run(settings) as metadata, gateway_of(settings, metadata, console) as front:
        yield front


@asynccontextmanager
async def gateway_of(settings: Settings, metadata: str, console: str = NOWHERE) -> AsyncIterator[Front]:
    """Only the gateway, in front of what listens on `metadata` and `console`."""
    wired = settings.model_copy(update={"metadata_addr": metadata, "console_addr": console})
    async with app.run(wired) as address, aiohttp.ClientSession() as session:
        yield Front(address, wired, session)


async def eventually(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Until `condition` holds; a TimeoutError says that it never did."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(0.02)
