"""The list that metadata reads, and metadata's own registry over it."""

from __future__ import annotations

import asyncio
import json

import pytest

from brix.console.v1 import deployment_templates_pb2 as pb
from brix.console.v1 import templates_pb2
from services.console.service import checks
from services.kit.errors import InvalidArgument
from services.metadata.registry.registry import opened
from tests.console.conftest import Console, a_spec


async def page(console: Console, **fields) -> templates_pb2.ListTemplatesResponse:
    return await console.listing.ListTemplates(templates_pb2.ListTemplatesRequest(**fields))


async def walked(console: Console, size: int) -> list[templates_pb2.Template]:
    found, token = [], ""
    while True:
        answer = await page(console, page_size=size, page_token=token)
        found += answer.templates
        token = answer.next_page_token
        if not token:
            return found


async def test_an_empty_list_has_an_etag(console):
    empty = await page(console)
    assert (list(empty.templates), empty.next_page_token) == ([], "")
    assert empty.etag
    assert await page(console, known_etag=empty.etag) == templates_pb2.ListTemplatesResponse(etag=empty.etag)


async def test_every_change_gives_another_etag_and_nothing_else_does(console):
    model = await console.model()
    etags = [(await page(console)).etag]

    async def changed() -> None:
        etags.append((await page(console, known_etag=etags[-1])).etag)

    made = await console.template(model.id)
    await changed()
    request = pb.UpdateDeploymentTemplateRequest(
        project_id="default", model_id=model.id, id=made.id, status="draft", revision=1
    )
    await console.templates.UpdateDeploymentTemplate(request)
    await changed()
    await console.templates.DeleteDeploymentTemplate(
        pb.DeleteDeploymentTemplateRequest(project_id="default", model_id=model.id, id=made.id)
    )
    await changed()
    assert len(set(etags)) == 4
    await console.model("another")
    with pytest.raises(InvalidArgument):
        await console.template(model.id, spec={})
    answer = await page(console, known_etag=etags[-1])
    assert answer == templates_pb2.ListTemplatesResponse(etag=etags[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_all_templates_in_any_status_by_name_and_version(console, size):
    expected = []
    for project in ("one", "two"):
        model = await console.model(project_id=project)
        for name in ("b", "a"):
            for version, status in (("v2", "draft"), ("v1", "active")):
                await console.template(
                    model.id, f"{name}-{project}", project_id=project, version=version, status=status
                )
                expected.append((f"{name}-{project}", version, status))
    assert [(one.name, one.version, one.status) for one in await walked(console, size)] == sorted(expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 1000])
async def test_of_the_same_name_and_version_the_oldest_wins(console, size):
    for number in range(4):
        model = await console.model(project_id=f"p{number}")
        for name in ("a", "b"):
            spec = a_spec(accelerator={"type": f"T{number}", "count": 1})
            await console.template(model.id, name, spec, project_id=f"p{number}")
    found = await walked(console, size)
    assert [(one.name, json.loads(one.spec_json)["accelerator"]["type"]) for one in found] == [("a", "T0"), ("b", "T0")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": "é"}, "page_token"),
        ({"page_token": "e30="}, "page_token"),
        ({"page_token": "WyJhIiwiXHUwMDAwIl0="}, "page_token"),
        ({"page_token": "A" * 10_000}, "page_token"),
    ],
)
async def test_wrong_requests(console, fields, param):
    with pytest.raises(InvalidArgument) as wrong:
        await page(console, **fields)
    assert wrong.value.context["param"] == param


async def test_a_page_ends_before_it_is_too_large(console, monkeypatch):
    monkeypatch.setattr(checks, "PAGE_CHARACTERS", 1)
    model = await console.model()
    for number in range(3):
        await console.template(model.id, version=f"v{number}")
    answer = await page(console)
    assert (len(answer.templates), bool(answer.next_page_token)) == (1, True)
    assert [one.version for one in await walked(console, 1000)] == ["v0", "v1", "v2"]


async def test_metadatas_registry_holds_what_people_made(console, make_settings):
    model = await console.model()
    settings = make_settings(templates={"source": "console"}, console_addr=console.address)
    async with opened(settings) as registry:
        assert registry.catalog.templates.by_name == {}
        await asyncio.gather(*(console.template(model.id, version=f"v1.{n}") for n in range(12)))
        await registry.reload()
        assert registry.catalog.templates.resolve("llama", None).version == "v1.11"
        before = registry.catalog
        await registry.reload()
        assert registry.catalog is before
