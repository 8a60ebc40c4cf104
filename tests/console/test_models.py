from __future__ import annotations

import asyncio
import re

import pytest

from brix.console.v1 import models_pb2
from brix.type.v1 import job_pb2
from services.kit.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Unavailable
from tests.console.conftest import Console


async def get(console: Console, id: str, project_id: str = "default") -> models_pb2.Model:
    return await console.models.GetModel(models_pb2.GetModelRequest(project_id=project_id, id=id))


async def update(console: Console, id: str, revision: int, **fields) -> models_pb2.Model:
    asked = {"project_id": "default"} | fields
    return await console.models.UpdateModel(models_pb2.UpdateModelRequest(id=id, revision=revision, **asked))


async def delete(console: Console, id: str, project_id: str = "default") -> None:
    await console.models.DeleteModel(models_pb2.DeleteModelRequest(project_id=project_id, id=id))


async def names(console: Console, **fields) -> list[str]:
    asked = {"project_id": "default"} | fields
    page = await console.models.ListModels(models_pb2.ListModelsRequest(**asked))
    return [model.name for model in page.data]


async def test_a_model_is_what_was_given(console):
    made = await console.model(
        "Llama 3.1 8B", serving_name="meta/llama", description="One\nmodel.", category="LLM", project_id="default"
    )
    assert made.id == "model-llama-3-1-8b"
    assert (made.name, made.serving_name, made.description, made.category) == (
        "Llama 3.1 8B",
        "meta/llama",
        "One\nmodel.",
        "LLM",
    )
    assert made.revision == 1
    assert made.create_time.ToDatetime(console.clock.time.tzinfo) == console.clock.time
    assert await get(console, made.id) == made


async def test_an_id_is_given_or_made_of_the_name(console):
    assert (await console.model("a", id="My_own-1")).id == "My_own-1"
    assert (await console.model("A/b")).id == "model-a-b"
    assert re.fullmatch(r"model-a-b-[0-9a-f]{8}", (await console.model("A b")).id)
    assert re.fullmatch(r"model-[0-9a-f]{32}", (await console.model("模型")).id)
    assert len((await console.model("x" * 255)).id) <= 64
    assert len((await console.model("x" * 254 + "!")).id) <= 64


async def test_a_name_and_an_id_are_there_once_in_a_project(console):
    await console.model("a", id="one")
    with pytest.raises(AlreadyExists) as taken:
        await console.model("a", id="two")
    assert taken.value.context["param"] == "name"
    with pytest.raises(AlreadyExists) as taken:
        await console.model("b", id="one")
    assert taken.value.context["param"] == "id"
    other = await console.model("a", id="one", project_id="other", description="theirs")
    assert (await get(console, "one", "other")) == other
    assert (await get(console, "one")).description == ""


async def test_many_creates_of_one_name_at_once(console):
    answers = await asyncio.gather(*(console.model("same") for _ in range(8)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyExists"] * 7 + ["Model"]
    answers = await asyncio.gather(*(console.model("a" + "-" * n + "b") for n in range(1, 6)))
    assert len({model.id for model in answers}) == 5


async def test_another_projects_model_does_not_exist(console):
    model = await console.model(project_id="other")
    for call in (get(console, model.id), update(console, model.id, 1, category="x"), delete(console, model.id)):
        with pytest.raises(NotFound) as missing:
            await call
        assert missing.value.context["param"] == "id"
    assert await names(console) == []


@pytest.mark.parametrize("id", ["", "nothing", "a\0b", "x" * 100_000, "model-é"])
async def test_ids_that_name_nothing(console, id):
    for call in (get(console, id), update(console, id, 1), delete(console, id)):
        with pytest.raises(NotFound) as missing:
            await call
        assert len(missing.value.message) < 200
    assert await names(console, after=id) == []


WRONG = [
    ({"name": ""}, "name", "missing_required_parameter"),
    ({"name": "a\0"}, "name", "invalid_value"),
    ({"name": "a\n"}, "name", "invalid_value"),
    ({"name": " a"}, "name", "invalid_value"),
    ({"name": "x" * 256}, "name", "string_above_max_length"),
    ({"id": "a/b"}, "id", "invalid_value"),
    ({"id": "-a"}, "id", "invalid_value"),
    ({"id": "a\0"}, "id", "invalid_value"),
    ({"id": "x" * 65}, "id", "invalid_value"),
    ({"serving_name": "--trust-remote-code"}, "serving_name", "invalid_value"),
    ({"serving_name": "a\0"}, "serving_name", "invalid_value"),
    ({"serving_name": "x" * 513}, "serving_name", "string_above_max_length"),
    ({"description": "a\0"}, "description", "invalid_value"),
    ({"description": "x" * 4097}, "description", "string_above_max_length"),
    ({"category": "a\0"}, "category", "invalid_value"),
    ({"category": "x" * 129}, "category", "string_above_max_length"),
    ({"project_id": ""}, "project_id", "missing_required_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
async def test_wrong_fields(console, fields, param, code):
    with pytest.raises(InvalidArgument) as wrong:
        await console.model(**({"name": "a"} | fields))
    assert wrong.value.context == {"param": param, "code": code}
    assert len(wrong.value.message) < 300
    changeable = {"serving_name", "description", "category"}
    if changeable >= set(fields):
        model = await console.model("b")
        with pytest.raises(InvalidArgument) as wrong:
            await update(console, model.id, 1, **fields)
        assert wrong.value.context == {"param": param, "code": code}


async def test_an_update_changes_what_is_given(console):
    model = await console.model("a", serving_name="s", description="d", category="c")
    console.clock.advance(5)
    changed = await update(console, model.id, 1, description="")
    assert (changed.serving_name, changed.description, changed.category) == ("s", "", "c")
    assert changed.revision == 2
    assert changed.update_time.seconds == changed.create_time.seconds + 5
    changed = await update(console, model.id, 2, serving_name="", category="e")
    assert not changed.HasField("serving_name")
    assert await get(console, model.id) == changed


@pytest.mark.parametrize(
    ("revision", "code"),
    [(0, "missing_required_parameter"), (-1, "invalid_value"), (2**62, "invalid_value"), (2**63 - 1, "invalid_value")],
)
async def test_an_update_names_the_revision_that_was_seen(console, revision, code):
    model = await console.model()
    with pytest.raises(InvalidArgument) as wrong:
        await update(console, model.id, revision, category="x")
    assert wrong.value.context == {"param": "revision", "code": code}


async def test_of_updates_at_once_one_wins(console):
    model = await console.model()
    calls = (update(console, model.id, 1, description=f"of {n}") for n in range(6))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, models_pb2.Model)]
    lost = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(won), len(lost)) == (1, 5)
    assert "revision 2, not 1" in lost[0].message
    assert lost[0].context["param"] == "revision"
    assert await get(console, model.id) == won[0]


async def test_an_update_whose_answer_was_lost_may_be_repeated(console):
    model = await console.model()
    changed = await update(console, model.id, 1, category="x")
    assert await update(console, model.id, 1, category="x") == changed
    with pytest.raises(Conflict):
        await update(console, model.id, 1, category="y")
    await update(console, model.id, 2, category="z")
    await update(console, model.id, 3, category="x")
    with pytest.raises(Conflict):
        await update(console, model.id, 1, category="x")


async def test_a_model_with_templates_stays(console):
    model = await console.model()
    await console.template(model.id)
    with pytest.raises(Conflict) as refused:
        await delete(console, model.id)
    assert "deployment templates" in refused.value.message


async def test_a_model_with_a_live_job_stays(console):
    model = await console.model()
    console.planner.jobs["job_1"] = job_pb2.Job(
        id="job_1", project_id="default", model_id=model.id, status=job_pb2.Job.IN_PROGRESS
    )
    with pytest.raises(Conflict) as refused:
        await delete(console, model.id)
    assert "job_1" in refused.value.message
    await console.planner.move("job_1", job_pb2.Job.COMPLETED)
    await delete(console, model.id)
    with pytest.raises(NotFound):
        await get(console, model.id)
    with pytest.raises(NotFound):
        await delete(console, model.id)


async def test_a_template_that_is_made_while_its_model_is_deleted(console):
    """Either the model stays, or there is no template."""
    for number in range(10):
        model = await console.model(f"m{number}")
        made, deleted = await asyncio.gather(
            console.template(model.id), delete(console, model.id), return_exceptions=True
        )
        assert (isinstance(made, NotFound), isinstance(deleted, Conflict)) in ((True, False), (False, True))


async def test_a_deleted_model_holds_neither_its_name_nor_its_id(console):
    for _ in range(3):
        model = await console.model("a")
        assert model.id == "model-a"
        await delete(console, model.id)
    assert await names(console) == []


async def test_without_a_planner_nothing_is_deleted(console):
    model = await console.model()
    console.planner.is_down = True
    with pytest.raises(Unavailable):
        await delete(console, model.id)
    assert await get(console, model.id) == model


async def test_pages_are_walked_from_the_newest(console):
    made = [(await console.model(f"m{n}")).name for n in range(7)]
    await console.model("not mine", project_id="other")
    walked: list[str] = []
    after, has_more = None, True
    while has_more:
        request = models_pb2.ListModelsRequest(project_id="default", limit=3, after=after)
        page = await console.models.ListModels(request)
        walked += [model.name for model in page.data]
        after, has_more = page.data[-1].id, page.has_more
    assert walked == made[::-1]


async def test_a_cursor_holds_its_place_when_its_model_is_deleted(console):
    for n in range(5):
        await console.model(f"m{n}")
    await delete(console, "model-m2")
    assert await names(console, after="model-m2") == ["m1", "m0"]
    await console.model("m2")  # the same id again, at another place
    assert await names(console, after="model-m2") == ["m4", "m3", "m1", "m0"]


async def test_models_of_one_moment_are_all_listed(console):
    for n in range(5):
        request = models_pb2.CreateModelRequest(project_id="default", name=f"m{n}")
        await console.models.CreateModel(request)
    first = await names(console, limit=2)
    rest = await names(console, after=f"model-{first[-1]}")
    assert sorted(first + rest) == [f"m{n}" for n in range(5)]


async def test_search_and_category(console):
    await console.model("Llama 100%", category="LLM")
    await console.model("llama_guard", category="guard")
    await console.model("ÉCOLE", category="LLM")
    assert await names(console, search="LLAMA") == ["llama_guard", "Llama 100%"]
    assert await names(console, search="%") == ["Llama 100%"]
    assert await names(console, search="_") == ["llama_guard"]
    assert await names(console, search="école") == ["ÉCOLE"]
    assert await names(console, category="LLM") == ["ÉCOLE", "Llama 100%"]
    assert await names(console, category="LLM", search="lla") == ["Llama 100%"]
    assert await names(console, category="", search="") == ["ÉCOLE", "llama_guard", "Llama 100%"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"search": "a\0"}, "search"),
        ({"search": "x" * 300}, "search"),
        ({"category": "a\0"}, "category"),
    ],
)
async def test_wrong_lists(console, fields, param):
    with pytest.raises(InvalidArgument) as wrong:
        await names(console, **fields)
    assert wrong.value.context["param"] == param
