"""Templates that people made in the console, asked for over gRPC."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from grpc import aio

from brix.console.v1 import templates_pb2, templates_pb2_grpc
from services.kit.grpc_errors import DEFAULT_TIMEOUT_S
from services.kit.server import CHANNEL_OPTIONS
from services.metadata.registry.source import Document, Snapshot, SourceError

PAGE = 500
MOST_TEMPLATES = 100_000
MOST_BYTES = 64 * 1024 * 1024
# How often a list is begun anew because it changed while it was read.
ATTEMPTS = 3


class ChangedMeanwhile(SourceError):
    """What was read belongs to two lists."""


class ConsoleSource:
    """Each template is a document of its own: one that is broken takes no other with it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = f"console at {address}"
        self.channel: aio.Channel | None = None

    async def check(self) -> None:
        pass

    async def follow(self, changed: Callable[[], None]) -> None:
        pass

    async def close(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            await channel.close()

    async def fetch(self, known: object | None) -> Snapshot | None:
        if self.channel is None:
            # Without the interceptor of other channels, which logs each failure: an outage of the console is logged once.
            self.channel = aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        stub = templates_pb2_grpc.TemplateServiceStub(self.channel)
        known_etag = known if isinstance(known, str) else ""
        try:
            return await self._attempts(stub, known_etag)
        except aio.AioRpcError as error:
            raise SourceError(f"the console answers {error.code().name}") from error

    async def _attempts(self, stub: templates_pb2_grpc.TemplateServiceAsyncStub, known_etag: str) -> Snapshot | None:
        for _ in range(ATTEMPTS - 1):
            try:
                return await _listed(stub, known_etag)
            except ChangedMeanwhile:
                continue
        return await _listed(stub, known_etag)


async def _listed(stub: templates_pb2_grpc.TemplateServiceAsyncStub, known_etag: str) -> Snapshot | None:
    """All pages of one list; None if it is still the known one."""
    documents: dict[str, Document] = {}
    size, token, etag = 0, "", None
    while True:
        known = "" if token else known_etag
        request = templates_pb2.ListTemplatesRequest(page_size=PAGE, page_token=token, known_etag=known)
        page = await stub.ListTemplates(request, timeout=DEFAULT_TIMEOUT_S)
        if known and page.etag == known:
            return None
        if etag is not None and page.etag != etag:
            raise ChangedMeanwhile("the console's templates change faster than they can be read")
        etag = page.etag
        for template in page.templates:
            document = _document(template)
            documents.setdefault(document.origin, document)
            size += template.ByteSize()
        token = page.next_page_token
        if not token:
            return Snapshot(tuple(documents.values()), etag or None)
        if not page.templates or len(documents) > MOST_TEMPLATES or size > MOST_BYTES:
            raise SourceError("the console lists more templates than can be held, or lists without an end")


def _document(template: templates_pb2.Template) -> Document:
    """One template as a text of JSON. What is wrong with its fields is found like in any other."""
    origin = f"console:{template.name}@{template.version}"
    try:
        orjson.loads(template.spec_json)
    except ValueError:
        return Document(origin, None, "its spec is not JSON")
    fields = {"name": template.name, "version": template.version, "status": template.status}
    given: dict[str, object] = {name: value for name, value in fields.items() if value}
    # The text as it came: to read and write it again would hide a key that stands there twice.
    given["spec"] = orjson.Fragment(template.spec_json)
    return Document(origin, orjson.dumps(given).decode())
