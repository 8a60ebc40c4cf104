"""Templates and profiles in YAML: good entries are read, each fault has its line, and no text does harm."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.kit.spec import tree
from services.kit.spec.documents import Read, read_profiles, read_templates
from services.kit.spec.tree import Unreadable, compose

SPEC: dict[str, Any] = {
    "engine": {"type": "vllm"},
    "model_source": {"type": "huggingface", "uri": "owner/model"},
    "accelerator": {"type": "A10", "count": 1},
    "supported_endpoints": ["/v1/chat/completions"],
}
GOOD = """\
- name: small
  version: v1
  spec: &spec
    engine: {type: vllm, serve_args: [--seed, "7"]}
    model_source: {type: huggingface, uri: owner/model}
    accelerator: {type: A10, count: 1}
    supported_endpoints: [/v1/chat/completions]
"""


def a_template(name: str = "small", **fields: Any) -> dict[str, Any]:
    return {"name": name, "version": "v1", "spec": SPEC} | fields


def lines(read: Read[Any]) -> list[str]:
    return [str(problem) for problem in read.problems]


def labels(read: Read[Any]) -> list[str]:
    return [getattr(item, "label", item.name) for item in read.items]


def config_map(**data: str) -> str:
    return yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data})


# What is accepted.


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        json.dumps([a_template()]),
        json.dumps(a_template(), indent=2),
        yaml.safe_dump(a_template()),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        config_map(**{"templates.yaml": GOOD}),
        config_map(**{"templates.yaml": GOOD, "profiles.yaml": "items: []"}),
        config_map(anything=GOOD),
        config_map(**{"profiles.yaml": "items: []"}) + "---\n" + config_map(**{"templates.yaml": GOOD}),
        "---\n---\n" + GOOD + "...\n",
    ],
)
def test_every_shape_holds_the_template(text: str) -> None:
    read = read_templates(text, "t.yaml")
    assert (labels(read), lines(read)) == (["small@v1"], [])


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "[]", "null", config_map(**{"templates.yaml": ""})])
def test_an_empty_text_holds_nothing_and_is_right(text: str) -> None:
    assert read_templates(text, "t.yaml") == Read()
    if text != "[]" and "ConfigMap" not in text:
        assert read_profiles(text, "p.yaml") == Read()


def test_several_documents_are_one() -> None:
    text = GOOD + "---\n" + json.dumps(a_template("big")) + "\n---\n" + config_map(x=json.dumps([a_template("third")]))
    assert labels(read_templates(text, "t.yaml")) == ["small@v1", "big@v1", "third@v1"]


def test_a_spec_may_be_shared() -> None:
    text = (
        GOOD
        + "- name: other\n  spec: *spec\n- name: third\n  spec:\n    <<: *spec\n    accelerator: {type: H100, count: 1}\n"
    )
    read = read_templates(text, "t.yaml")
    assert labels(read) == ["small@v1", "other@v1.0.0", "third@v1.0.0"]
    assert [item.spec.accelerator.type for item in read.items] == ["A10", "A10", "H100"]
    assert read.items[2].spec.engine.serve_args == ["--seed", "7"]


@pytest.mark.parametrize("version", ["2024-05-01", "1:30", "1.2.3", "v1", "0x", "1_x", '"1.10"', "'7'", "!!str 7"])
def test_what_is_no_number_stays_a_text(version: str) -> None:
    read = read_templates(GOOD.replace("version: v1", f"version: {version}"), "t.yaml")
    assert lines(read) == []
    assert read.items[0].version == version.removeprefix("!!str ").strip("\"'")


def test_profiles() -> None:
    text = "default: fast\nitems:\n- name: fast\n- name: slow\n  spec: {quota: {max_requests_per_batch: 10}}\n"
    read = read_profiles(text, "p.yaml")
    assert (labels(read), read.default, lines(read)) == (["fast", "slow"], "fast", [])
    assert read_profiles(config_map(**{"profiles.yaml": text}), "p.yaml").default == "fast"


# What is refused, and where it says that it stands.


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("type: vllm", "type: vlm"), "4: templates[0].spec.engine.type: Input should be 'vllm', "),
        (("version: v1", "version: 1.10"), '2: templates[0].version: Input should be a valid string; write it in quotes: "1.10"'),
        (('"7"', "7"), '4: templates[0].spec.engine.serve_args[1]: Input should be a valid string; write it in quotes: "7"'),
        (("version: v1", "version: on"), '2: templates[0].version: Input should be a valid string; write it in quotes: "on"'),
        (("count: 1", "count: 2"), "3: templates[0].spec.parallelism: tp * pp * dp * ep must equal accelerator.count"),
        (("count: 1", 'count: "1"'), "6: templates[0].spec.accelerator.count: Input should be a valid integer"),
        (("    engine:", "    provider_config: {}\n    engine:"), "4: templates[0].spec.provider_config: there is no such field"),
        (("name: small\n  ", ""), "1: templates[0].name: this field is required"),
        ((", uri: owner/model", ""), "5: templates[0].spec.model_source.uri: this field is required"),
        (("version: v1", "name: other"), "2: templates[0].name: this key stands there twice, first on line 1"),
        (("version: v1", "1: 2"), '2: templates[0]: a key must be a text: write it in quotes "1"'),
        (("version: v1", "? [a]\n  : b"), "2: templates[0]: a key must be a text: write it in quotes"),
        (("version: v1", "version: !secret v1"), "2: templates[0].version: this tag is not known here, or does not fit"),
        (("version: v1", "!secret version: v1"), "2: templates[0]: this tag is not known here, or does not fit"),
        (("version: v1", "version: !!int v1"), "2: templates[0].version: this tag is not known here, or does not fit"),
        (("version: v1", "<<: v1"), "2: templates[0]: << takes a mapping, or a list of mappings"),
        (("type: A10", "type: -A10"), "6: templates[0].spec.accelerator.type: it may not begin with a dash"),
    ],
)  # fmt: skip
def test_a_fault_has_its_line_and_path(change: tuple[str, str], problem: str) -> None:
    assert change[0] in GOOD
    text = GOOD.replace(*change) + GOOD.replace("small", "good").replace("&spec", "")
    read = read_templates(text, "t.yaml")
    assert lines(read)[0].startswith(f"t.yaml:{problem}")
    assert labels(read) == ["good@v1"]


def test_all_problems_of_all_entries_in_the_order_of_lines() -> None:
    text = textwrap.dedent("""\
        - name: a
          version: 1
          spec: {engine: {type: x}, what: 1}
        - just a text
        - name: b
          colour: red
        """)
    assert lines(read_templates(text, "t.yaml")) == [
        't.yaml:2: templates[0].version: Input should be a valid string; write it in quotes: "1"',
        "t.yaml:3: templates[0].spec.model_source: this field is required",
        "t.yaml:3: templates[0].spec.accelerator: this field is required",
        "t.yaml:3: templates[0].spec.supported_endpoints: this field is required",
        "t.yaml:3: templates[0].spec.engine.type: Input should be 'vllm', 'sglang', 'trtllm', 'lmdeploy', 'llamacpp' or 'mock'",
        "t.yaml:3: templates[0].spec.what: there is no such field",
        "t.yaml:4: templates[1]: it must be a mapping",
        "t.yaml:5: templates[2].spec: this field is required",
        "t.yaml:6: templates[2].colour: there is no such field",
    ]


def test_the_second_of_two_with_one_name_and_version_is_the_problem() -> None:
    text = GOOD + GOOD.replace("A10", "H100").replace("&spec", "")
    read = read_templates(text, "t.yaml")
    assert [item.spec.accelerator.type for item in read.items] == ["A10"]
    assert lines(read) == ["t.yaml:8: templates[1].name: an entry before it has this name and version"]


def test_lines_in_a_config_map_are_those_of_the_file() -> None:
    bad = GOOD.replace("vllm", "vlm")
    text = "kind: ConfigMap\ndata:\n  templates.yaml: |\n" + textwrap.indent(bad, "      ")
    (problem,) = read_templates(text, "t.yaml").problems
    where = text.splitlines()[problem.line - 1].find("type: vlm")  # type: ignore[operator]
    assert (problem.line, problem.column) == (7, where + 1)
    (folded,) = read_templates(json.dumps({"kind": "ConfigMap", "data": {"x": bad}}, indent=1), "t.json").problems
    assert folded.line == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\nb: 2", "t.yaml:2: not YAML: "),
        ("a: 'b", "t.yaml:1: not YAML: "),
        ("é:\n  a: \x07", "t.yaml:2: not YAML: the character U+0007 is not allowed"),
        ("a: \ud800", "t.yaml:1: not YAML: the character U+D800 is not allowed"),
        ("- *nothing", "t.yaml:1: an alias that names nothing"),
        ("- &a [*a]", "t.yaml:1: an alias inside of what it names"),
        ("- &a {b: {c: *a}}", "t.yaml:1: an alias inside of what it names"),
        ("[" * 100_000, "t.yaml:1: nested deeper than 64 levels"),
        ("{a: " * 100_000, "t.yaml:1: nested deeper than 64 levels"),
        ("- " * 100_000, "t.yaml:1: nested deeper than 64 levels"),
        ("\n".join(["- &a0 [x]", *(f"- &a{n} [*a{n - 1}]" for n in range(1, 500))]), "t.yaml:63: nested deeper than 64"),
        ("\n".join(["- &a0 [1,1,1,1]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))]),
         "t.yaml:6: aliases make more than 200000 values"),
        ("x" * (tree.MOST_CHARACTERS + 1), "t.yaml: the text is longer than 8388608 characters"),
        ("just a text", "t.yaml:1: it must be a list of templates"),
        ("kind: ConfigMap\ndata: {a: x, b: y}", "t.yaml:2: data: the ConfigMap has no text under the key templates.yaml"),
        ("kind: ConfigMap\ndata: {profiles.yaml: ''}", "t.yaml:2: data: the ConfigMap has no text under the key"),
        ("kind: ConfigMap\ndata: {x: [1]}", "t.yaml:2: data: the ConfigMap has no text under the key templates.yaml"),
        ("kind: ConfigMap\ndata:", "t.yaml:2: data: the ConfigMap has no text under the key templates.yaml"),
        ("kind: ConfigMap\ndata:\n  x: |\n    - a: [", "t.yaml:"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_problem_and_may_be_any_entry(text: str, problem: str) -> None:
    read = read_templates(text, "t.yaml")
    assert len(lines(read)) == 1
    assert lines(read)[0].startswith(problem)
    assert (read.items, read.lost) == ((), {(None, None)})


def test_a_text_of_brackets_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOST_NODES", 1000)
    with pytest.raises(Unreadable, match="more than 1000 values"):
        compose("[" + "[]," * 1000 + "]")


@pytest.mark.parametrize(
    ("entry", "lost"),
    [
        ("{name: a, version: v2, what: 1}", ("a", "v2")),
        ("{name: a, what: 1}", ("a", "v1.0.0")),
        ("{name: a, version: 1.10}", ("a", "1.10")),
        ("{name: a, version: [v1]}", ("a", None)),
        ("{version: v2}", (None, "v2")),
        ("{name: a, version: null}", ("a", None)),
        ("{nme: a}", (None, "v1.0.0")),
        ("what", (None, None)),
    ],
)
def test_a_bad_entry_is_known_by_name_and_version_as_far_as_they_can_be_read(
    entry: str, lost: tuple[str | None, str | None]
) -> None:
    assert read_templates(f"- {entry}", "t.yaml").lost == {lost}


@pytest.mark.parametrize(
    ("text", "problems", "default"),
    [
        ("default: a\nitems: [{name: a}]", [], "a"),
        ("default: null\nitems: [{name: a}]", [], None),
        ("default: b\nitems: [{name: a}]", ["p:1: default: the default profile is not among the good items"], None),
        ("default: a\nitems: [{name: a, spec: 1}]",
         ["p:2: items[0].spec: it must be a mapping", "p:1: default: the default profile is not among the good items"], None),
        ("default: 7\nitems: []", ['p:1: default: Input should be a valid string; write it in quotes: "7"'], None),
        ("items: [{name: a}, {name: a}]", ["p:1: items[1].name: an entry before it has this name"], None),
        ("itmes: []", ["p:1: itmes: there is no such field"], None),
        ("items: null", ["p:1: items: it must be a list of profiles"], None),
        ("items: []\nitems: []", ["p:2: items: this key stands there twice, first on line 1"], None),
        ("- name: a", ["p:1: it must be a mapping with `default` and `items`"], None),
        ("default: a\nitems: [{name: a}]\n---\ndefault: b\nitems: [{name: b}]",
         ["p:4: default: a default is named already"], "a"),
    ],
)  # fmt: skip
def test_profiles_that_are_wrong(text: str, problems: list[str], default: str | None) -> None:
    read = read_profiles(text, "p")
    assert (lines(read), read.default) == (problems, default)


def test_a_problem_is_one_line_and_never_huge() -> None:
    text = json.dumps([{"a\nb\u2028" + "x" * 5000: 1, "name": "n\nm", "spec": {"engine": {"type": "y" * 5000}}}])
    for line in lines(read_templates(text, "t.json")):
        assert len(line.splitlines()) == 1
        assert len(line) < 1000
        assert "yyyy" not in line


def test_of_very_many_problems_the_first_are_listed() -> None:
    read = read_templates(json.dumps([{}] * 10_000), "t.json")
    assert len(read.problems) == 10_001
    assert lines(read)[-1] == "t.json: 10000 more problems"


# Whatever the text is.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=50), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
yaml_texts = (
    st.text()
    | st.text(alphabet="ab:-[]{},&*!|>#'\"% \n\t<?0.1eE~\ud800")
    | st.lists(st.sampled_from([*GOOD.splitlines(keepends=True), "---\n", "kind: ConfigMap\n", "data:\n", "  x: |\n"])).map("".join)
    | json_values.map(json.dumps)
    | st.dictionaries(st.sampled_from(["kind", "data", "items", "default", "name", "spec"]), json_values).map(yaml.safe_dump)
)  # fmt: skip


@given(yaml_texts)
def test_no_text_makes_it_raise(text: str) -> None:
    for read in (read_templates(text, "x"), read_profiles(text, "x")):
        assert read.items or read.problems or not read.lost
        for problem in read.problems:
            assert len(str(problem).splitlines()) == 1


@given(st.integers(0, len(GOOD)), st.integers(0, 20), st.text(max_size=5))
def test_no_damage_makes_it_raise(start: int, length: int, put: str) -> None:
    read_templates(GOOD[:start] + put + GOOD[start + length :], "x")


@given(json_values)
def test_json_is_yaml(value: Any) -> None:
    text = json.dumps(value)
    try:
        (document,) = compose(text)
    except Unreadable as error:
        assert "character" in error.message  # noqa: PT017 - JSON may hold control characters that YAML may not
    else:
        assert document.value == value or '"<<"' in text


@given(st.text(alphabet="+-.0123456789_eExXoOabfnulytrsNOY~:", max_size=12))
def test_a_scalar_means_what_yaml_says_but_for_the_named_exceptions(text: str) -> None:
    """Base 60, timestamps, infinities: texts here. Numbers of JSON: numbers here."""
    try:
        expected = yaml.safe_load(f"[{text}]")[0]
    except (yaml.YAMLError, IndexError, ValueError):
        return
    if not isinstance(expected, (str, int, float, bool, type(None))):
        return
    got = compose(f"[{text}]")[0].value[0]
    if isinstance(expected, str):
        assert got == text or isinstance(got, (int, float))
    elif isinstance(got, str):
        assert ":" in text or "inf" in text.lower() or "nan" in text.lower() or text[:2].strip("+-").startswith("0")
    else:
        assert got == expected
