from __future__ import annotations

import asyncio
import json
import random

import pytest

from brix.console.v1 import deployment_templates_pb2 as pb
from brix.console.v1 import models_pb2
from brix.type.v1 import job_pb2
from services.console.service import checks
from services.kit.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Unavailable
from tests.console.conftest import Console, a_spec, serving_console

ORDERED = ["stable", "v0.9", "v1.0.0-rc.1", "v1.0.0", "v1.9.0", "v1.10.0", "v2.0.0-rc.2"]


@pytest.fixture
async def model_id(console) -> str:
    return (await console.model()).id


async def get(console: Console, model_id: str, id: str, project_id: str = "default") -> pb.DeploymentTemplate:
    request = pb.GetDeploymentTemplateRequest(project_id=project_id, model_id=model_id, id=id)
    return await console.templates.GetDeploymentTemplate(request)


async def update(console: Console, template: pb.DeploymentTemplate, revision: int, **fields) -> pb.DeploymentTemplate:
    asked = {"project_id": "default", "model_id": template.model_id, "id": template.id, "revision": revision} | fields
    return await console.templates.UpdateDeploymentTemplate(pb.UpdateDeploymentTemplateRequest(**asked))


async def delete(console: Console, template: pb.DeploymentTemplate, **fields) -> None:
    asked = {"project_id": "default", "model_id": template.model_id, "id": template.id} | fields
    await console.templates.DeleteDeploymentTemplate(pb.DeleteDeploymentTemplateRequest(**asked))


async def listed(console: Console, model_id: str, **fields) -> list[str]:
    asked = {"project_id": "default", "model_id": model_id} | fields
    page = await console.templates.ListDeploymentTemplates(pb.ListDeploymentTemplatesRequest(**asked))
    return [f"{one.name}@{one.version}" for one in page.data]


async def test_a_template_is_what_was_given(console, model_id):
    args = {"max_num_seqs": 8, "seed": 2**70, "trust": None, "nested": {"a": [1.5, "x"]}}
    spec = a_spec(engine={"type": "trtllm"}, engine_args=args, parallelism={})
    made = await console.template(model_id, spec=spec)
    assert made.id.startswith("tmpl_")
    assert (made.model_id, made.name, made.version, made.status, made.revision) == (
        model_id,
        "llama",
        "v1.0.0",
        "active",
        1,
    )
    assert json.loads(made.spec_json) == spec
    assert await get(console, model_id, made.id) == made


@pytest.mark.parametrize("seed", range(3))
async def test_the_latest_active_version_is_resolved(console, model_id, seed):
    versions = random.Random(seed).sample(ORDERED, len(ORDERED))
    for version in versions:
        await console.template(model_id, version=version)
    for latest in reversed(ORDERED):
        found = await console.resolve(model_id)
        assert found.version == latest
        assert await console.resolve(model_id, version="") == found
        await update(console, found, 1, status="deprecated")
    with pytest.raises(Conflict) as none_active:
        await console.resolve(model_id)
    assert "v1.10.0 (deprecated)" in none_active.value.message
    assert none_active.value.context["param"] == "version"


@pytest.mark.parametrize("status", ["active", "deprecated", "draft"])
async def test_a_named_version_is_resolved_in_any_status(console, model_id, status):
    await console.template(model_id, version="v1", status=status)
    await console.template(model_id, version="v2")
    assert (await console.resolve(model_id, version="v1")).status == status
    assert (await console.resolve(model_id)).version == "v2"


async def test_what_cannot_be_resolved(console, model_id):
    await console.template(model_id, version="v1")
    for name, version, param in (
        ("nothing", None, "name"),
        ("nothing", "v1", "name"),
        ("a\0", None, "name"),
        ("x" * 100_000, None, "name"),
        ("llama", "v2", "version"),
        ("llama", "v1\0", "version"),
        ("llama", "x" * 100_000, "version"),
    ):
        with pytest.raises(NotFound) as missing:
            await console.resolve(model_id, name, version)
        assert missing.value.context["param"] == param
        assert len(missing.value.message) < 400
    with pytest.raises(NotFound) as missing:
        await console.resolve("nothing")
    assert missing.value.context["param"] == "model_id"
    with pytest.raises(NotFound):
        await console.resolve(model_id, project_id="other")
    with pytest.raises(InvalidArgument):
        await console.resolve(model_id, "")


async def test_versions_of_another_model_are_not_meant(console, model_id):
    other = (await console.model("other")).id
    await console.template(other, version="v9")
    await console.template(model_id, version="v1")
    assert (await console.resolve(model_id)).version == "v1"
    with pytest.raises(NotFound):
        await console.resolve(model_id, version="v9")


async def test_a_version_is_there_once_and_again_after_it_was_deleted(console, model_id):
    for _ in range(3):
        made = await console.template(model_id)
        with pytest.raises(AlreadyExists) as taken:
            await console.template(model_id)
        assert taken.value.context["param"] == "version"
        await delete(console, made)
    answers = await asyncio.gather(*(console.template(model_id) for _ in range(6)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyExists"] * 5 + ["DeploymentTemplate"]


WRONG = [
    ({"name": ""}, "name"),
    ({"name": "-a"}, "name"),
    ({"name": "a\0"}, "name"),
    ({"name": "x" * 129}, "name"),
    ({"version": "a b"}, "version"),
    ({"version": "x" * 129}, "version"),
    ({"version": "a\0"}, "version"),
    ({"status": "Active"}, "status"),
    ({"status": "a\0"}, "status"),
    ({"spec_json": ""}, "spec"),
    ({"spec_json": "{"}, "spec"),
    ({"spec_json": "null"}, "spec"),
    ({"spec_json": "[]"}, "spec"),
    ({"spec_json": "NaN"}, "spec"),
    ({"spec_json": '{"a": "\\ud800"}'}, "spec"),
    ({"spec_json": "[" * 5000}, "spec"),
    ({"spec_json": '{"a":' * 500 + "1" + "}" * 500}, "spec"),
    ({"spec_json": '{"a": "' + "x" * 600_000 + '"}'}, "spec"),
    ({"spec": {}}, "spec.engine"),
    ({"spec": a_spec(what=1)}, "spec.what"),
    ({"spec": a_spec(engine={"type": "nothing"})}, "spec.engine.type"),
    ({"spec": a_spec(engine={"type": 1})}, "spec.engine.type"),
    ({"spec": a_spec(engine={"type": "vllm", "image": "a b"})}, "spec.engine.image"),
    ({"spec": a_spec(accelerator={"type": "A10"})}, "spec.accelerator.count"),
    ({"spec": a_spec(accelerator={"type": "A10", "count": "1"})}, "spec.accelerator.count"),
    ({"spec": a_spec(parallelism={"tp": 2})}, "spec.parallelism"),
    ({"spec": a_spec(supported_endpoints=[])}, "spec.supported_endpoints"),
    ({"spec": a_spec(supported_endpoints=["/v2"])}, "spec.supported_endpoints.0"),
    ({"spec": a_spec(model_source={"type": "local", "uri": "--help"})}, "spec.model_source.uri"),
    ({"spec": a_spec(engine_args={"--port": 1})}, "spec.engine_args.--port"),
    ({"spec": a_spec(engine_args={"trust_remote_code": True})}, "spec.engine_args.trust_remote_code"),
    ({"spec": a_spec(engine={"type": "vllm", "serve_args": ["--trust-remote-code"]})}, "spec.engine.serve_args"),
    (
        {
            "spec": a_spec(
                model_source={"type": "huggingface", "uri": "a/b", "chat_template_path": "/etc/passwd"},
            )
        },
        "spec.model_source.chat_template_path",
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:60])
async def test_wrong_fields(console, model_id, fields, param):
    with pytest.raises(InvalidArgument) as wrong:
        await console.template(model_id, **fields)
    assert wrong.value.context["param"] == param
    assert wrong.value.context["code"] in {
        "missing_required_parameter",
        "unknown_parameter",
        "invalid_type",
        "invalid_value",
    }
    assert "aibrix" not in wrong.value.message
    assert len(wrong.value.message) < 400
    if set(fields) <= {"status", "spec", "spec_json"}:
        made = await console.template(model_id)
        changes = {"spec_json": json.dumps(fields["spec"])} if "spec" in fields else fields
        with pytest.raises(InvalidArgument) as wrong:
            await update(console, made, 1, **changes)
        assert wrong.value.context["param"] == param
        assert (await get(console, model_id, made.id)) == made


async def test_any_flag_where_there_is_one_user(make_settings):
    async with serving_console(make_settings(templates={"inline_flags": "any"})) as console:
        model = await console.model()
        made = await console.template(model.id, spec=a_spec(engine_args={"trust_remote_code": True}))
        assert json.loads(made.spec_json)["engine_args"] == {"trust_remote_code": True}


async def test_templates_need_their_model(console, model_id):
    for wrong in ("nothing", "", "a\0", "x" * 1000):
        with pytest.raises(NotFound) as missing:
            await console.template(wrong)
        assert missing.value.context["param"] == "model_id"
        with pytest.raises(NotFound):
            await listed(console, wrong)
    with pytest.raises(NotFound):
        await console.template(model_id, project_id="other")


async def test_another_projects_or_models_template_does_not_exist(console, model_id):
    made = await console.template(model_id)
    other = (await console.model("other")).id
    for fields in ({"project_id": "other"}, {"model_id": other}, {"id": "a\0"}, {"id": "x" * 1000}, {"id": ""}):
        for call in (update(console, made, 1, status="draft", **fields), delete(console, made, **fields)):
            with pytest.raises(NotFound) as missing:
                await call
            assert missing.value.context["param"] == "id"
    with pytest.raises(NotFound):
        await get(console, model_id, made.id, "other")


async def test_an_update_changes_what_is_given(console, model_id):
    made = await console.template(model_id)
    console.clock.advance(5)
    changed = await update(console, made, 1, status="draft")
    assert (changed.status, changed.spec_json, changed.revision) == ("draft", made.spec_json, 2)
    assert changed.update_time.seconds == made.update_time.seconds + 5
    spec = a_spec(accelerator={"type": "H100", "count": 1})
    changed = await update(console, made, 2, spec_json=json.dumps(spec))
    assert (changed.status, json.loads(changed.spec_json)) == ("draft", spec)
    assert await get(console, model_id, made.id) == changed


async def test_of_updates_at_once_one_wins(console, model_id):
    made = await console.template(model_id)
    specs = [json.dumps(a_spec(accelerator={"type": f"T{n}", "count": 1})) for n in range(6)]
    answers = await asyncio.gather(
        *(update(console, made, 1, spec_json=spec) for spec in specs), return_exceptions=True
    )
    won = [answer for answer in answers if isinstance(answer, pb.DeploymentTemplate)]
    lost = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(won), len(lost)) == (1, 5)
    assert "revision 2" in lost[0].message
    assert await update(console, made, 1, spec_json=won[0].spec_json) == won[0]
    for wrong in (0, -1, 2**62, 2**63 - 1):
        with pytest.raises(InvalidArgument) as refused:
            await update(console, made, wrong, status="draft")
        assert refused.value.context["param"] == "revision"
    with pytest.raises(Conflict):
        await update(console, made, 2**62 - 1, status="draft")


async def test_a_template_with_a_live_job_stays(console, model_id):
    made = await console.template(model_id)
    later = await console.template(model_id, version="v2")
    console.planner.jobs["job_1"] = job_pb2.Job(
        id="job_1",
        project_id="default",
        model_id=model_id,
        model_template_name="llama",
        model_template_version="v1.0.0",
        status=job_pb2.Job.QUEUED,
    )
    with pytest.raises(Conflict) as refused:
        await delete(console, made)
    assert "job_1" in refused.value.message
    await delete(console, later)
    console.planner.is_down = True
    with pytest.raises(Unavailable):
        await delete(console, made)
    console.planner.is_down = False
    await console.planner.move("job_1", job_pb2.Job.FAILED)
    await delete(console, made)
    with pytest.raises(NotFound):
        await delete(console, made)


async def test_pages_and_filters(console, model_id):
    for n in range(4):
        await console.template(model_id, "a", version=f"v{n}", status="draft" if n % 2 else "active")
    last = await console.template(model_id, "b")
    assert await listed(console, model_id) == ["b@v1.0.0", "a@v3", "a@v2", "a@v1", "a@v0"]
    assert await listed(console, model_id, name="a", status="draft") == ["a@v3", "a@v1"]
    assert await listed(console, model_id, limit=2) == ["b@v1.0.0", "a@v3"]
    assert await listed(console, model_id, limit=2, after=last.id) == ["a@v3", "a@v2"]
    await delete(console, last)
    assert await listed(console, model_id, after=last.id) == ["a@v3", "a@v2", "a@v1", "a@v0"]
    other = (await console.model("other")).id
    theirs = await console.template(other)
    for unknown in ("nothing", "", "a\0", theirs.id):
        assert await listed(console, model_id, after=unknown) == []
    for fields, param in (
        ({"limit": 101}, "limit"),
        ({"limit": 0}, "limit"),
        ({"status": "all"}, "status"),
        ({"name": "a\0"}, "name"),
    ):
        with pytest.raises(InvalidArgument) as wrong:
            await listed(console, model_id, **fields)
        assert wrong.value.context["param"] == param


async def test_a_page_of_large_templates_fits_into_a_message(console, model_id, monkeypatch):
    monkeypatch.setattr(checks, "PAGE_CHARACTERS", 40_000)
    spec = a_spec(engine={"type": "trtllm", "serve_args": ["x" * 8_000]})
    for n in range(20):
        await console.template(model_id, version=f"v{n}", spec=spec)
    walked, after, has_more = [], None, True
    while has_more:
        request = pb.ListDeploymentTemplatesRequest(project_id="default", model_id=model_id, limit=20, after=after)
        page = await console.templates.ListDeploymentTemplates(request)
        assert 0 < len(page.data) < 6
        walked += [one.version for one in page.data]
        after, has_more = page.data[-1].id, page.has_more
    assert walked == [f"v{n}" for n in reversed(range(20))]


async def test_a_deleted_template_leaves_the_model_free(console, model_id):
    made = await console.template(model_id)
    await delete(console, made)
    await console.models.DeleteModel(models_pb2.DeleteModelRequest(project_id="default", id=model_id))
