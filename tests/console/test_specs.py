"""Properties of what is read from users: whatever comes, it is kept as it was given or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.console.domain import Template
from services.console.service import listing, models, specs
from services.kit.engines.table import ADAPTERS
from services.kit.errors import InvalidArgument
from services.kit.spec.template import TemplateSpec
from tests.console.conftest import SPEC

CODES = {"missing_required_parameter", "unknown_parameter", "invalid_type", "invalid_value"}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ANY = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@st.composite
def right_specs(draw: st.DrawFn) -> dict[str, Any]:
    tp, pp = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    optional: dict[str, Any] = {
        "parallelism": {"tp": tp, "pp": pp},
        "engine_args": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "max_num_seqs": st.integers(1, 1000),
                    "gpu_memory_utilization": st.floats(0.01, 1),
                    "enable_prefix_caching": st.booleans(),
                    "max_model_len": st.none() | st.integers(1, 10**9),
                    "flag": st.integers() | st.booleans() | WORDS | st.none() | st.dictionaries(st.text(), SCALARS),
                },
            )
        ),
    }
    return {
        "engine": {"type": draw(st.sampled_from(["vllm", "sglang", "trtllm", "mock"]))},
        "model_source": {"type": "huggingface", "uri": draw(WORDS)},
        "accelerator": {"type": draw(WORDS), "count": tp * pp},
        "supported_endpoints": ["/v1/chat/completions"],
    } | optional


@given(spec=right_specs())
def test_a_spec_is_kept_as_it_was_given(spec: dict[str, Any]) -> None:
    read, text = specs.read_spec(json.dumps(spec), any_flag=True)
    assert json.loads(text) == spec
    assert TemplateSpec.model_validate_json(text) == read
    assert specs.read_spec(text, any_flag=True) == (read, text)


def outcome(read: Callable[[], Any]) -> Any:
    """What it returns, or the refusal."""
    try:
        return read()
    except InvalidArgument as refused:
        return refused


def paths(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(path for key, inner in below for path in paths(inner, (*place, key)))]


@given(data=st.data())
@settings(max_examples=300)
def test_a_spec_with_anything_anywhere_is_read_or_refused_by_name(data: st.DataObject) -> None:
    spec = json.loads(json.dumps(SPEC))
    place = data.draw(st.sampled_from(paths(spec)[1:]))
    held = spec
    for key in place[:-1]:
        held = held[key]
    held[place[-1]] = data.draw(ANY)
    if data.draw(st.booleans()):
        spec[data.draw(st.text())] = data.draw(ANY)
    text = json.dumps(spec)
    found = outcome(lambda: specs.read_spec(text, any_flag=False))
    if isinstance(found, InvalidArgument):
        assert found.context["param"].split(".")[0] == "spec"
        assert found.context["code"] in CODES
        assert len(found.message) < 1000
        assert "aibrix" not in found.message
    else:
        assert json.loads(found[1]) == spec


@given(text=st.text() | ANY.map(json.dumps))
def test_any_text_for_any_document(text: str) -> None:
    for read in (specs.read_client, specs.read_resource_request, specs.check_metadata):
        found = outcome(lambda read=read: read(text))
        if isinstance(found, InvalidArgument):
            assert found.context["param"].split(".")[0] in ("client", "resource_request", "metadata")
        else:
            assert isinstance(orjson.loads(text), dict)


@given(metadata=st.dictionaries(st.text(max_size=64), st.text(max_size=512), max_size=16))
def test_metadata_of_right_sizes_is_right(metadata: dict[str, str]) -> None:
    if any("\0" in text for pair in metadata.items() for text in pair):
        with pytest.raises(InvalidArgument):
            specs.check_metadata(json.dumps(metadata))
    else:
        specs.check_metadata(json.dumps(metadata))


@given(name=st.text(min_size=1, max_size=255))
def test_the_id_of_any_name_fits_into_a_path(name: str) -> None:
    slug = models.slug_of(name)
    for id in (f"model-{slug}" if slug else "model-x", models.suffixed(slug)):
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id)
    assert models.suffixed(slug) != models.suffixed(slug)


@given(name=st.from_regex(r"[A-Za-z0-9][ -~]{0,100}[!-~]", fullmatch=True), version=WORDS)
def test_a_token_is_read_as_it_was_made(name: str, version: str) -> None:
    token = listing.make_token(Template(name=name, version=version, status="active", spec_json=""))
    assert listing.read_token(token) == (name, version)


@given(token=st.text(min_size=1) | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_token_is_read_or_refused(token: str) -> None:
    found = outcome(lambda: listing.read_token(token))
    if isinstance(found, InvalidArgument):
        assert found.context["param"] == "page_token"
    else:
        assert listing.make_token(Template(name=found[0], version=found[1], status="", spec_json=""))


@pytest.mark.parametrize("engine", sorted(set(ADAPTERS) - {"mock"}))
def test_flags_that_are_not_listed_are_refused_for_every_engine(engine: str) -> None:
    spec = SPEC | {"engine": {"type": engine, "serve_args": ["--log-file", "/etc/passwd"]}}
    with pytest.raises(InvalidArgument) as refused:
        specs.read_spec(json.dumps(spec), any_flag=False)
    assert refused.value.context["param"] == "spec.engine.serve_args"
    specs.read_spec(json.dumps(spec), any_flag=True)
