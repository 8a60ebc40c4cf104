"""Which files a template may name: those of the operator's folder, however the path is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.spec.template import TemplateSpec
from services.runner.engines.files import FIELDS, Files

NAMES = [name for _, name in FIELDS]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models beside one that is nobody's business, with links between them."""
    models, outside = tmp_path / "models", tmp_path / "outside"
    for folder in (models, outside):
        (folder / "acme").mkdir(parents=True)
        (folder / "tiny.gguf").touch()
        (folder / "acme" / "tiny").touch()
    (models / "out.gguf").symlink_to(outside / "tiny.gguf")
    (models / "out").symlink_to(outside, target_is_directory=True)
    (models / "in.gguf").symlink_to(models / "tiny.gguf")
    (models / "circle").symlink_to(models / "circle")
    return models


def files(models_dir: Path | str, *, bound: bool = True, folder: Path = Path("/nonexistent")) -> Files:
    return Files(models_dir=str(models_dir), folder=folder, bound=bound)


def spec_of(engine: str = "vllm", kind: str = "huggingface", **fields: str) -> TemplateSpec:
    source = {"type": kind, "uri": "acme/big"} | {name: text for name, text in fields.items() if name in NAMES[:3]}
    return TemplateSpec.model_validate(
        {
            "engine": {"type": engine},
            "model_source": source,
            "accelerator": {"type": "cpu", "count": 1},
            "supported_endpoints": ["/v1/chat/completions"],
            "engine_args": {name: text for name, text in fields.items() if name not in source},
        }
    )


def value(spec: TemplateSpec, name: str) -> Any:
    section = next(section for section, each in FIELDS if each == name)
    return getattr(getattr(spec, section), name)


WAYS_OUT = [
    "{outside}/tiny.gguf",
    "{outside}/missing.gguf",
    "{models}/../outside/tiny.gguf",
    "../outside/tiny.gguf",
    "acme/../../outside/tiny.gguf",
    "out.gguf",
    "out/tiny.gguf",
    "out/missing.gguf",
    "{models}/out/../outside/tiny.gguf",
    "circle",
    "{models}-of-another/tiny.gguf",
    "/etc/passwd",
    "/proc/self/environ",
    "/",
]


# Where there is no such file, these are names of models on a hub.
LIKE_A_HUB = ("out/missing.gguf", "circle")


@pytest.mark.parametrize(
    ("engine", "name", "way"),
    [
        (engine, name, way)
        for engine in ("vllm", "sglang", "llamacpp")
        for name in NAMES
        for way in WAYS_OUT
        if way not in LIKE_A_HUB or name == "uri" or engine == "llamacpp"
    ],
)
def test_no_way_leads_out(models: Path, engine: str, name: str, way: str) -> None:
    text = way.format(models=models, outside=models.parent / "outside")
    kind = "local" if name == "uri" else "huggingface"
    with pytest.raises(InvalidArgument) as refused:
        files(models).located(spec_of(engine, kind, **{name: text}))
    section = next(section for section, each in FIELDS if each == name)
    assert refused.value.context["param"] == f"aibrix.model_template.spec.{section}.{name}"
    assert "AIBRIX_LOCAL__MODELS_DIR" in refused.value.message
    assert "outside" not in refused.value.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["tiny.gguf", "acme/tiny", "in.gguf", "{models}/tiny.gguf", "acme/../tiny.gguf"])
def test_what_lies_inside_is_named_by_its_whole_path(models: Path, name: str, way: str) -> None:
    kind = "local" if name == "uri" else "huggingface"
    found = files(models).located(spec_of(kind=kind, **{name: way.format(models=models)}))
    path = Path(value(found, name))
    assert path.is_absolute()
    assert path.exists()
    # Not where a link leads: parts of a model are found beside the name that was given.
    assert path.name == way.rpartition("/")[2]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_folder_no_file_may_be_named(models: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="AIBRIX_LOCAL__MODELS_DIR"):
        files("").located(spec_of(**{name: str(models / "tiny.gguf")}))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("not_bound", [{"models_dir": "*", "bound": True}, {"models_dir": "", "bound": False}])
def test_others_are_not_bound(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str, not_bound: dict[str, Any]
) -> None:
    monkeypatch.chdir(models.parent)
    kind = "local" if name == "uri" else "huggingface"
    for text in (str(models.parent / "outside" / "tiny.gguf"), "outside/tiny.gguf", "models/../outside/tiny.gguf"):
        found = files(**not_bound).located(spec_of(kind=kind, **{name: text}))
        assert Path(value(found, name)).resolve() == models.parent / "outside" / "tiny.gguf"


def test_an_operators_relative_path_is_relative_to_the_folder(models: Path) -> None:
    found = files(models, bound=False).located(spec_of(kind="local", uri="tiny.gguf"))
    assert found.model_source.uri == str(models / "tiny.gguf")


@pytest.mark.parametrize("uri", ["acme/big", "big", "acme/big-2.5_x", "acme/big:Q4_K_M"])
def test_models_of_a_hub_stay_as_they_are(models: Path, uri: str) -> None:
    for models_dir in ("", models, "*"):
        for name in ("uri", "tokenizer_path", "speculative_model"):
            spec = spec_of(**{name: uri})
            assert files(models_dir).located(spec) == spec


def test_a_file_where_the_engine_would_look_for_it_is_no_model_of_a_hub(models: Path) -> None:
    """The engine itself prefers the file, so the name is judged as one."""
    with pytest.raises(InvalidArgument, match="may not name a file"):
        files("", folder=models).located(spec_of(uri="acme/tiny"))
    assert files("", folder=models).located(spec_of(uri="acme/big")).model_source.uri == "acme/big"


@pytest.mark.parametrize(
    "uri", ["~/model", "./model", ".hidden/model", "file:///etc/passwd", "s3://bucket/model", "a/b/c"]
)
def test_what_no_hub_would_call_a_model_is_a_file(models: Path, uri: str) -> None:
    with pytest.raises(InvalidArgument, match="may not name a file"):
        files("").located(spec_of(uri=uri))
    assert files(models).located(spec_of(uri=uri)).model_source.uri == f"{models / uri}"


def test_llama_cpp_takes_files_only(models: Path) -> None:
    """Beside a model's repository: everything else that it gets it opens."""
    found = files(models).located(spec_of("llamacpp", uri="tiny.gguf", speculative_model="acme/draft"))
    assert (found.model_source.type, found.model_source.uri) == ("local", str(models / "tiny.gguf"))
    assert found.engine_args.speculative_model == str(models / "acme" / "draft")
    assert files(models).located(spec_of("llamacpp", uri="acme/big:Q8_0")).model_source.uri == "acme/big:Q8_0"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_models_in_s3_are_the_operators_to_name(engine: str) -> None:
    spec = spec_of(engine, "s3", uri="s3://bucket/model")
    assert files("", bound=False).located(spec) == spec
    assert files("*").located(spec) == spec
    with pytest.raises(InvalidArgument, match="credentials") as refused:
        files("/models").located(spec)
    assert refused.value.context["param"] == "aibrix.model_template.spec.model_source.type"
    with pytest.raises(InvalidArgument, match="s3://"):
        files("", bound=False).located(spec_of(engine, "s3", uri="/etc/passwd"))


@pytest.mark.parametrize(
    ("engine", "kind"), [("vllm", "tos"), ("vllm", "hdfs"), ("sglang", "tos"), ("llamacpp", "s3"), ("llamacpp", "hdfs")]
)
def test_stores_that_the_engine_cannot_read(engine: str, kind: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{engine} cannot load from {kind}") as refused:
        files("*", bound=False).located(spec_of(engine, kind, uri=f"{kind}://bucket/model"))
    assert refused.value.context["param"] == "aibrix.model_template.spec.model_source.type"


def test_the_mock_engine_has_no_files() -> None:
    spec = spec_of("mock", "local", uri="/etc/passwd")
    assert files("").located(spec) == spec


def test_what_a_batch_wrote_over_an_operators_template_is_bound(models: Path) -> None:
    """A relative path would else be found from wherever the runner was started."""
    spec = spec_of("llamacpp", "local", uri=str(models / "tiny.gguf"), speculative_model="../outside/tiny.gguf")
    operators = files(models, bound=False)
    assert value(operators.located(spec), "uri") == str(models / "tiny.gguf")
    written_over = Files(
        models_dir=str(models), folder=Path("/nonexistent"), bound=False, overridden=frozenset({"speculative_model"})
    )
    with pytest.raises(InvalidArgument) as refused:
        written_over.located(spec)
    assert refused.value.context["param"].endswith("engine_args.speculative_model")
