"""What a registry is used for: versions, models, a running server; and what its page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.spec.profile import ProfileSpec, Quota, RetryHints, Scheduling
from services.kit.spec.template import TemplateSpec
from services.metadata.registry.models import served_models
from tests.metadata.conftest import CHAT, eventually, serving_metadata, some_lines
from tests.metadata.entries import a_spec, entry, labels, problems, text
from tests.metadata.registry.conftest import put

# What a catalog does with them.


async def test_the_latest_active_version_by_its_order(over, path):
    versions = [entry("a", "v1.9.0"), entry("a", "v1.10.0"), entry("a", "v2.0.0-rc.1", status="draft")]
    put(path, text(*versions, entry("a", "v1.11.0", status="deprecated")))
    async with over(path) as registry:
        resolve = registry.catalog.templates.resolve
        assert [resolve("a", None).version, resolve("a", "").version] == ["v1.10.0", "v1.10.0"]
        assert resolve("a", "v2.0.0-rc.1").status == "draft"


async def test_ten_thousand_templates(over, path):
    lines = (
        f"- {{name: n{number // 5}, version: v{number % 5}, spec: "
        "{engine: {type: mock}, model_source: {type: local, uri: m}, accelerator: {type: cpu, count: 1}, "
        f"supported_endpoints: [{CHAT}]}}}}"
        for number in range(10_000)
    )
    path.write_text("\n".join(lines))
    async with over(path) as registry:
        assert len(labels(registry)) == 10_000
        assert registry.catalog.templates.resolve("n7", None).version == "v4"


# Models.


@pytest.mark.parametrize(
    ("engine", "args", "models"),
    [
        ({"type": "vllm"}, {}, ["owner/model"]),
        ({"type": "vllm"}, {"served_model_name": "m"}, ["m"]),
        ({"type": "sglang"}, {"served-model-name": "m"}, ["m"]),
        ({"type": "vllm"}, {"Served_Model-Name": ["m", "n"]}, ["m", "n"]),
        ({"type": "vllm", "serve_args": ["--served-model-name", "m", "n", "--seed", "7"]}, {}, ["m", "n"]),
        ({"type": "vllm", "serve_args": ["--served_model_name=m", "--seed", "7"]}, {"served_model_name": "x"}, ["m"]),
        ({"type": "vllm", "serve_args": ["--served-model-name=m", "--served-model-name", "n"]}, {}, ["n"]),
        ({"type": "vllm", "serve_args": ["--served-model-name"]}, {}, ["owner/model"]),
        ({"type": "vllm", "serve_args": ["-a", "m", "--alias", "n"]}, {}, ["owner/model"]),
        ({"type": "llamacpp", "serve_args": ["-a", "m"]}, {}, ["m"]),
        ({"type": "llamacpp", "serve_args": ["--alias", "m"]}, {}, ["m"]),
        ({"type": "llamacpp"}, {"alias": "m"}, ["m"]),
        ({"type": "trtllm", "serve_args": ["--served-model-name", "m"]}, {}, ["owner/model"]),
        ({"type": "mock"}, {}, ["owner/model"]),
    ],
)
def test_what_a_template_serves(engine, args, models):
    spec = TemplateSpec.model_validate(a_spec(engine=engine, engine_args=args))
    assert served_models(spec) == models


async def test_the_models_of_the_latest_active_templates_since_they_were_seen(over, path):
    def serving(name: str, version: str, model: str, **fields: Any) -> dict[str, Any]:
        return entry(name, version, spec=a_spec(engine_args={"served_model_name": model}), **fields)

    put(path, text(serving("a", "v1", "old"), serving("a", "v2", "m"), serving("b", "v1", "none", status="draft")))
    async with over(path) as registry:
        ((model, since),) = registry.models()
        assert model == "m"
        put(path, text(serving("a", "v2", "m"), serving("c", "v1", "another"), serving("d", "v1", "m")))
        await registry.reload()
        names = [name for name, _ in registry.models()]
        assert names == ["another", "m"]
        assert registry.models()[1] == ("m", since)
        assert registry.models()[0][1] > since


# The page for operators.

PAGE = Path(__file__).parents[3] / "docs" / "registry.md"


def example(first_line: str) -> str:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return next(block for block in blocks if block.startswith(first_line))


async def test_the_examples_of_the_page_are_good(over, tmp_path):
    sources = [tmp_path / name for name in ("templates.yaml", "profiles.yaml")]
    for source in sources:
        put(source, example(f"# {source.name}"))
    async with over(*sources) as registry:
        assert labels(registry) == ["llama3-8b@v2.0.0-rc.1", "llama3-8b@v1.1.0"]
        assert registry.catalog.templates.resolve("llama3-8b", None).version == "v1.1.0"
        assert [model for model, _ in registry.models()] == ["llama3-8b"]
        assert registry.catalog.profiles.default_profile().spec.quota.input_bytes() == 50 * 1024 * 1024
        assert registry.catalog.profiles.resolve("overnight").spec.scheduling.rank() < 0
        assert (problems("templates"), problems("profiles")) == (0, 0)
        for source in sources:
            put(source, example("apiVersion: v1\nkind: ConfigMap"))
        await registry.reload()
        assert (labels(registry), list(registry.catalog.profiles.by_name)) == (["llama3-8b@v1.0.0"], ["standard"])
        assert (problems("templates"), problems("profiles")) == (0, 0)


def test_the_page_has_every_field_of_a_profile_and_who_honours_it():
    rows = dict(re.findall(r"^\| `spec\.([a-z_.]+)` \|.*\| (\w+) \|$", PAGE.read_text(), re.MULTILINE))
    fields = [
        f"{part}.{name}"
        for part, model in (("scheduling", Scheduling), ("quota", Quota))
        for name in model.model_fields
    ]
    assert list(rows) == fields
    unused = {"provider_preference": ["x"], "allow_preempt": True, "allow_spot": True, "retry_policy": RetryHints()}
    ignored = ProfileSpec(scheduling=Scheduling(**unused)).ignored_fields()
    assert [name for name, who in rows.items() if who == "nobody"] == ignored


# In the server.


async def test_a_running_server_takes_over_a_change(make_settings, path):
    put(path, text(entry("a", "v1")))
    settings = make_settings(templates={"source": str(path), "reload_s": 0.01}, default_endpoint="http://127.0.0.1:9")
    async with serving_metadata(settings) as metadata:
        file = await metadata.file(some_lines(1))
        block = '{"model_template": {"name": "b"}}'
        with pytest.raises(InvalidArgument, match="Known templates are: 'a'") as raised:
            await metadata.batch(input_file_id=file.id, aibrix_json=block)
        assert raised.value.context["param"] == "aibrix.model_template.name"
        put(path, text(entry("a", "v1"), entry("b")))

        async def accepted() -> Any:
            try:
                return await metadata.batch(input_file_id=file.id, aibrix_json=block)
            except InvalidArgument:
                return None

        assert (await eventually(accepted)).id
