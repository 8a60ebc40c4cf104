"""The registry over gRPC: a real server on loopback with a servicer of this test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import structlog

from brix.console.v1 import templates_pb2, templates_pb2_grpc
from services.kit.server import serving
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.kit.spec.profile import Quota
from services.kit.spec.resolved import resolve
from services.metadata.registry import console
from services.metadata.registry.registry import Registry, opened
from tests.conftest import free_port
from tests.metadata.entries import SPEC, a_spec, accelerator, labels, problems, told

SERVICE = templates_pb2.DESCRIPTOR.services_by_name["TemplateService"].full_name


class Console(templates_pb2_grpc.TemplateServiceServicer):
    """What the contract says, over a list that the test changes."""

    def __init__(self) -> None:
        self.templates: list[templates_pb2.Template] = []
        self.etag = "1"
        self.largest_page = 1000
        self.asked: list[templates_pb2.ListTemplatesRequest] = []
        self.before_each: Callable[[], None] = lambda: None

    def put(self, name: str, version: str = "v1", spec: Any = None, status: str = "active") -> None:
        text = spec if isinstance(spec, str) else json.dumps(spec or SPEC)
        self.templates = [one for one in self.templates if (one.name, one.version) != (name, version)]
        self.templates.append(templates_pb2.Template(name=name, version=version, status=status, spec_json=text))
        self.etag = str(int(self.etag) + 1) if self.etag else ""

    async def ListTemplates(
        self, request: templates_pb2.ListTemplatesRequest, context: Any
    ) -> templates_pb2.ListTemplatesResponse:
        self.before_each()
        self.asked.append(request)
        if self.etag and request.known_etag == self.etag:
            return templates_pb2.ListTemplatesResponse(etag=self.etag)
        start = int(request.page_token or 0)
        end = start + min(request.page_size, self.largest_page)
        token = str(end) if end < len(self.templates) else ""
        page = self.templates[start:end]
        return templates_pb2.ListTemplatesResponse(templates=page, next_page_token=token, etag=self.etag)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def there() -> Console:
    return Console()


Serve = Callable[[], Any]


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def serve(there: Console, address: str) -> Serve:
    register = partial(templates_pb2_grpc.add_TemplateServiceServicer_to_server, there)
    return lambda: serving(address, [register], [SERVICE], grace=0)


@pytest.fixture
async def registry(
    there: Console, serve: Serve, address: str, make_settings: Callable[..., Settings]
) -> AsyncIterator[Registry]:
    """Over a console that serves one template, `a`, with a handle to end it."""
    there.put("a")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve())
        settings = make_settings(templates={"source": "console"}, console_addr=address)
        yield await stack.enter_async_context(opened(settings))


async def test_templates_in_any_status(registry: Registry, there: Console) -> None:
    there.put("a", "v2", a_spec(accelerator={"type": "H100", "count": 1}), status="draft")
    await registry.reload()
    assert labels(registry) == ["a@v2", "a@v1"]
    assert (accelerator(registry, "a", None), accelerator(registry, "a", "v2")) == ("A10", "H100")


async def test_an_unchanged_list_is_asked_for_with_its_etag_and_not_read(registry: Registry, there: Console) -> None:
    before = registry.catalog
    await registry.reload()
    assert registry.catalog is before
    assert [request.known_etag for request in there.asked] == ["", "2"]
    there.etag = "3"
    await registry.reload()
    assert registry.catalog is before  # another etag, the same templates


async def test_a_console_that_gives_no_etag(registry: Registry, there: Console) -> None:
    there.etag = ""
    there.put("b")
    await registry.reload()
    there.put("c")
    await registry.reload()
    assert labels(registry) == ["a@v1", "b@v1", "c@v1"]


async def test_all_pages_are_read(registry: Registry, there: Console) -> None:
    for number in range(10):
        there.put(f"n{number}")
    there.largest_page = 3
    there.asked.clear()
    await registry.reload()
    assert len(labels(registry)) == 11
    assert [request.page_token for request in there.asked] == ["", "3", "6", "9"]
    assert {request.page_size for request in there.asked} == {console.PAGE}


async def test_a_list_that_changes_between_pages_is_begun_anew(registry: Registry, there: Console) -> None:
    for number in range(5):
        there.put(f"n{number}")
    there.largest_page = 4
    there.asked.clear()

    def change() -> None:
        if len(there.asked) == 1:
            there.put("z")

    there.before_each = change
    await registry.reload()
    assert len(labels(registry)) == 7
    assert [request.page_token for request in there.asked] == ["", "4", "", "4"]


async def test_a_list_that_never_stands_still_changes_nothing(
    registry: Registry, there: Console, logs: list[Any], address: str
) -> None:
    for number in range(5):
        there.put(f"n{number}")
    there.largest_page = 4
    there.before_each = lambda: there.put("z")
    await registry.reload()
    assert labels(registry) == ["a@v1"]
    assert told(logs) == [f"console at {address}: the console's templates change faster than they can be read"]


@pytest.mark.parametrize(("limit", "value"), [("MOST_TEMPLATES", 1), ("MOST_BYTES", 100)])
async def test_a_list_has_limits(
    registry: Registry, there: Console, logs: list[Any], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for number in range(5):
        there.put(f"n{number}")
    there.largest_page = 2
    monkeypatch.setattr(console, limit, value)
    await registry.reload()
    assert labels(registry) == ["a@v1"]
    assert "more templates than can be held" in told(logs)[0]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (a_spec(what=1), "console:a@v1:1: templates[0].spec.what: there is no such field"),
        ("{", "console:a@v1: its spec is not JSON"),
        ('{}, "name": "b"', "console:a@v1: its spec is not JSON"),
        ("null", "console:a@v1:1: templates[0].spec: it must be a mapping"),
    ],
)
async def test_a_bad_template_stays_as_it_was(
    registry: Registry, there: Console, logs: list[Any], spec: Any, problem: str
) -> None:
    there.put("a", spec=spec)
    there.put("b")
    await registry.reload()
    await registry.reload()
    assert labels(registry) == ["a@v1", "b@v1"]
    assert told(logs) == [problem]
    assert problems() == 1


async def test_a_key_that_stands_twice_is_seen(registry: Registry, there: Console, logs: list[Any]) -> None:
    there.put("b", spec=json.dumps(SPEC)[:-1] + ', "engine": {"type": "mock"}}')
    await registry.reload()
    assert told(logs) == ["console:b@v1:1: templates[0].spec.engine: this key stands there twice, first on line 1"]


async def test_an_outage_changes_nothing_and_is_told_once(
    there: Console, serve: Serve, address: str, make_settings: Callable[..., Settings], logs: list[Any]
) -> None:
    settings = make_settings(templates={"source": "console"}, console_addr=address)
    async with opened(settings) as registry:
        assert labels(registry) == []
        there.put("a")
        for _ in range(2):
            async with serve():
                while labels(registry) != ["a@v1"] or problems():
                    await registry.reload()
            await registry.reload()
            await registry.reload()
            assert labels(registry) == ["a@v1"]
        assert told(logs) == [f"console at {address}: the console answers UNAVAILABLE"] * 3
        assert {log["event"] for log in logs if log["log_level"] in ("warning", "error")} == {"registry problem"}


async def test_they_are_bound_like_a_template_that_a_batch_brings_along(registry: Registry) -> None:
    """Whoever has a key may write them, so flags and paths are limited as in a batch."""
    block = parse_block('{"model_template": {"name": "a"}}')
    found = resolve(block, registry.catalog, Quota()).template
    assert found is not None
    assert found.source == "inline"
