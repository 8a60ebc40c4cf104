"""The registry of templates and profiles over real files: what holds, what stays when an entry turns bad, what is said."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.spec.profile import ProfileSpec, Quota, RetryHints, Scheduling
from services.kit.spec.template import TemplateSpec
from services.metadata.registry import files
from services.metadata.registry.models import served_models
from services.metadata.registry.registry import opened
from tests.metadata.conftest import CHAT, eventually, serving_metadata, some_lines
from tests.metadata.entries import SPEC, a_spec, accelerator, entry, labels, problems, profiles, text, told


def put(path: Path, content: str) -> None:
    """As an editor does: a new file takes the place of the old one."""
    new = path.with_name(".new")
    new.write_text(content)
    new.replace(path)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "templates.yaml"


@pytest.fixture
def over(make_settings: Callable[..., Settings]) -> Any:
    """A registry over the given sources."""

    @asynccontextmanager
    async def make(templates: object = "", profiles: object = ""):
        settings = make_settings(templates={"source": str(templates)}, profiles={"source": str(profiles)})
        async with opened(settings) as registry:
            yield registry

    return make


# What is configured.


async def test_without_a_source_there_is_no_registry(over):
    async with over() as registry:
        assert (registry.catalog.templates, registry.catalog.profiles) == (None, None)
        assert registry.models() == []


@pytest.mark.parametrize(
    ("templates", "profiles"),
    [
        ("configmap:", ""),
        ("configmap:only-a-namespace", ""),
        ("configmap:Upper/case", ""),
        ("configmap:a/b/c/d", ""),
        ("", "console"),
        ("/no/such/folder/templates.yaml", ""),
    ],
)
async def test_a_source_that_can_never_work_stops_the_start(over, templates, profiles):
    with pytest.raises(
        ValueError, match=r"configmap:NAMESPACE/NAME|console has templates only|neither .* nor a folder"
    ):
        async with over(templates, profiles):
            pass


async def test_a_file_that_comes_later_is_waited_for(over, path, logs):
    async with over(path) as registry:
        assert labels(registry) == []
        assert told(logs) == [f"{path}: it cannot be read: No such file or directory"]
        await registry.reload()
        assert len(told(logs)) == 1
        put(path, text(entry("a")))
        await registry.reload()
        assert labels(registry) == ["a@v1"]
        assert problems() == 0


async def test_a_folder_with_a_link_that_leads_nowhere_is_read_again(over, path):
    path.mkdir()
    (path / "a.yaml").symlink_to("a.yaml")  # a circle
    async with over(path) as registry:
        assert labels(registry) == []
        (path / "a.yaml").unlink()
        put(path / "a.yaml", text(entry("a")))
        await registry.reload()
        assert labels(registry) == ["a@v1"]


# What changes.


async def test_a_file_that_is_replaced_holds_at_once(over, path):
    put(path, text(entry("a"), entry("b")))
    async with over(path) as registry:
        before = registry.catalog
        assert labels(registry) == ["a@v1", "b@v1"]
        put(path, text(entry("a", accelerator="H100"), entry("c")))
        await registry.reload()
        assert labels(registry) == ["a@v1", "c@v1"]
        assert accelerator(registry, "a") == "H100"
        assert before.templates.resolve("a", "v1").spec.accelerator.type == "A10"


async def test_a_change_that_leaves_size_and_time_as_they_were_is_seen(over, path):
    put(path, text(entry("a", accelerator="A10")))
    status = path.stat()
    async with over(path) as registry:
        path.write_text(text(entry("a", accelerator="A40")))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        await registry.reload()
        assert accelerator(registry, "a") == "A40"


async def test_nothing_is_read_while_nothing_changes(over, path, monkeypatch):
    put(path, text(entry("a")))
    monkeypatch.setattr(files, "SETTLED_S", -1.0)  # any change is old enough
    async with over(path) as registry:
        before = registry.catalog
        monkeypatch.setattr(files, "_read_all", lambda found: pytest.fail("it was read"))
        await registry.reload()
        assert registry.catalog is before


async def test_a_young_file_is_read_again_and_changes_nothing(over, path):
    put(path, text(entry("a")))
    async with over(path) as registry:
        before = registry.catalog
        path.touch()
        await registry.reload()
        assert registry.catalog is before


# The last good one stays.


async def test_an_entry_that_turns_bad_stays_as_it_was_and_the_others_go_on(over, path, logs):
    put(path, text(entry("a"), entry("b"), entry("c")))
    async with over(path) as registry:
        bad = entry("a") | {"spec": a_spec(what=1)}
        put(path, text(bad, entry("b", accelerator="H100"), entry("new")))
        await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1", "new@v1"]
        assert [accelerator(registry, name) for name in ("a", "b")] == ["A10", "H100"]
        (line,) = told(logs)
        assert line.startswith(f"{path}:")
        assert line.endswith(": templates[0].spec.what: there is no such field")
        assert [(log["name"], log["version"]) for log in logs if log["event"] == "registry problem"] == [("a", "v1")]
        assert problems() == 1
        put(path, text(entry("a", accelerator="L4")))
        await registry.reload()
        assert (labels(registry), accelerator(registry, "a")) == (["a@v1"], "L4")
        assert problems() == 0
        assert logs[-1]["event"] == "registry has no problems any more"


async def test_a_bad_entry_that_never_was_good_is_left_out(over, path):
    put(path, text(entry("a"), entry("b", what=1)))
    async with over(path) as registry:
        assert labels(registry) == ["a@v1"]
        assert problems() == 1


@pytest.mark.parametrize(
    ("bad", "kept"),
    [
        ({"name": "a", "version": "v1", "what": 1}, ["a@v1"]),
        ({"name": "a", "version": 1.10}, []),
        ({"name": "a", "version": ["v1"]}, ["a@v2", "a@v1"]),
        ({"version": "v2", "what": 1}, ["a@v2"]),
        ({"nme": "a"}, []),
        ("what", ["a@v2", "a@v1"]),
        ({"name": ["a"], "version": None}, ["a@v2", "a@v1"]),
    ],
)
async def test_what_a_bad_entry_may_have_been_stays(over, path, bad, kept):
    put(path, text(entry("a"), entry("a", "v2")))
    async with over(path) as registry:
        put(path, text(bad, entry("b")))
        await registry.reload()
        assert labels(registry) == [*kept, "b@v1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:-20] + "'"),
        lambda path: path.write_text("- name: ["),
        lambda path: path.write_bytes(b"- name: \xff"),
        lambda path: path.write_text("what"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
    ids=["cut", "broken", "bytes", "text", "gone", "pipe", "nowhere"],
)
async def test_a_document_that_cannot_be_read_stays_as_it_was(over, path, damage, logs):
    put(path, text(entry("a"), entry("b")))
    async with over(path) as registry:
        damage(path)
        for _ in range(3):
            await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1"]
        assert len(told(logs)) == 1
        assert problems() == 1
        if path.is_symlink() or path.exists():
            path.unlink()
        put(path, text(entry("b")))
        await registry.reload()
        assert labels(registry) == ["b@v1"]


async def test_an_empty_file_is_an_empty_registry(over, path):
    put(path, text(entry("a")))
    async with over(path) as registry:
        path.write_text("")
        await registry.reload()
        assert (labels(registry), problems()) == ([], 0)


async def test_a_problem_is_told_once_and_again_when_it_changes(over, path, logs):
    put(path, text(entry("a", what=1)))
    async with over(path) as registry:
        for _ in range(3):
            path.touch()
            await registry.reload()
        assert len(told(logs)) == 1
        put(path, text(entry("a", other=1)))
        await registry.reload()
        assert [line.rpartition("templates[0].")[2] for line in told(logs)] == [
            "what: there is no such field",
            "other: there is no such field",
        ]


async def test_of_a_flood_of_problems_some_are_told(over, path, logs):
    put(path, text(*[entry(f"n{number}", what=1) for number in range(500)]))
    async with over(path):
        assert len(told(logs)) == 100
        assert logs[-1] == {"event": "more registry problems", "log_level": "error", "kind": "templates", "count": 400}
        assert problems() == 500


async def test_what_is_not_honoured_is_told_once_by_field(over, path, logs):
    put(path, text(entry("a", spec=a_spec(service_id="secret-id")), entry("b")))
    async with over(path) as registry:
        put(path, text(entry("a", spec=a_spec(service_id="secret-id")), entry("c")))
        await registry.reload()
    found = [log for log in logs if log["event"] == "accepted, not honoured"]
    assert [(log["kind"], log["name"], log["version"], log["fields"]) for log in found] == [
        ("templates", "a", "v1", ["service_id"])
    ]
    assert "secret-id" not in str(logs)


# Folders.


async def test_the_files_of_a_folder_are_one(over, tmp_path, logs):
    folder = tmp_path / "registry"
    (folder / "deeper").mkdir(parents=True)
    put(folder / "b.yml", text(entry("b"), entry("a", accelerator="H100")))
    put(folder / "a.yaml", text(entry("a")))
    put(folder / "c.json", '{"name": "c", "spec": ' + yaml.safe_dump(SPEC, default_flow_style=True) + "}")
    for ignored in ("notes.txt", ".hidden.yaml", "deeper/d.yaml"):
        put(folder / ignored, text(entry("x")))
    async with over(folder) as registry:
        assert labels(registry) == ["a@v1", "b@v1", "c@v1.0.0"]
        assert accelerator(registry, "a") == "A10"
        assert told(logs) == [f"{folder / 'b.yml'}: a@v1 is in {folder / 'a.yaml'} already"]
        (folder / "a.yaml").unlink()
        await registry.reload()
        assert accelerator(registry, "a") == "H100"
        (folder / "b.yml").write_text("- [")
        (folder / "c.json").unlink()
        await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1"]
        assert problems() == 1


async def test_a_folder_that_vanishes_stays_as_it_was(over, tmp_path):
    folder = tmp_path / "registry"
    folder.mkdir()
    put(folder / "a.yaml", text(entry("a")))
    async with over(folder) as registry:
        folder.rename(tmp_path / "elsewhere")
        await registry.reload()
        assert (labels(registry), problems()) == (["a@v1"], 1)


def mounted(folder: Path, revision: str, **data: str) -> None:
    """As the kubelet writes a ConfigMap: a new folder, and a link to it that is swapped."""
    inner = folder / f"..{revision}"
    inner.mkdir(parents=True)
    for name, content in data.items():
        (inner / f"{name}.yaml").write_text(content)
    (folder / "..data_tmp").symlink_to(inner.name)
    (folder / "..data_tmp").replace(folder / "..data")
    for name in data:
        if not (folder / f"{name}.yaml").is_symlink():
            (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")


@pytest.mark.parametrize("source", ["", "templates.yaml"], ids=["folder", "file"])
async def test_a_mounted_config_map_is_swapped(over, tmp_path, source):
    folder = tmp_path / "mount"
    folder.mkdir()
    async with over(folder / source) as registry:
        assert labels(registry) == []
        mounted(folder, "2026_01", templates=text(entry("a")))
        await registry.reload()
        assert labels(registry) == ["a@v1"]
        mounted(folder, "2026_02", templates=text(entry("b")))
        await registry.reload()
        assert labels(registry) == ["b@v1"]


@pytest.mark.parametrize(
    ("limit", "value", "why"),
    [("MOST_FILES", 1, "more than 1 files"), ("MOST_BYTES", 10, "the files hold more than 10 bytes")],
)
async def test_a_folder_has_limits(over, tmp_path, monkeypatch, logs, limit, value, why):
    for name in ("a", "b"):
        put(tmp_path / f"{name}.yaml", text(entry(name)))
    async with over(tmp_path) as registry:
        monkeypatch.setattr(files, limit, value)
        put(tmp_path / "c.yaml", text(entry("c")))
        await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1"]
        assert told(logs) == [f"{tmp_path}: {why}"]


# Profiles.


async def test_profiles_and_their_default(over, path, logs):
    big = {"name": "big", "spec": {"quota": {"max_requests_per_batch": 9}, "scheduling": {"allow_spot": True}}}
    put(path, profiles({"name": "small"}, big, default="small"))
    async with over(profiles=path) as registry:
        held = registry.catalog.profiles
        assert held.default_profile().name == "small"
        assert held.resolve("big").spec.quota.max_requests_per_batch == 9
        assert registry.catalog.templates is None
        assert [log["fields"] for log in logs if log["event"] == "accepted, not honoured"] == [
            ["scheduling.allow_spot"]
        ]
        with pytest.raises(InvalidArgument, match="Known profiles are: 'big', 'small'"):
            held.resolve("none")


@pytest.mark.parametrize(
    ("content", "names", "default"),
    [
        (profiles({"name": "a", "what": 1}, {"name": "b"}, default="a"), ["a", "b"], "a"),
        (profiles({"name": "b"}, default="a"), ["b"], None),
        (profiles({"name": "a"}, {"name": "b"}, default="c"), ["a", "b"], "a"),
        (profiles({"name": "a"}, {"name": "b"}, default=7), ["a", "b"], "a"),
        (profiles({"name": "a"}, {"name": "b"}, default="b"), ["a", "b"], "b"),
        (profiles({"name": "a"}, {"name": "b"}), ["a", "b"], None),
        ("itmes: []", ["a", "b"], "a"),
        ("items: [", ["a", "b"], "a"),
        ("items: []", [], None),
    ],
)
async def test_the_last_good_profiles_and_default_stay(over, path, content, names, default):
    put(path, profiles({"name": "a"}, {"name": "b"}, default="a"))
    async with over(profiles=path) as registry:
        put(path, content)
        await registry.reload()
        held = registry.catalog.profiles
        assert (sorted(held.by_name), held.default) == (names, default)


async def test_of_two_defaults_in_a_folder_the_first_holds(over, tmp_path, logs):
    put(tmp_path / "a.yaml", profiles({"name": "a"}, default="a"))
    put(tmp_path / "b.yaml", profiles({"name": "b"}, default="b"))
    async with over(profiles=tmp_path) as registry:
        assert registry.catalog.profiles.default == "a"
        assert told(logs) == [f"{tmp_path / 'b.yaml'}: default: another document names a default already"]


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

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"


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
