"""Documents that users write: what is right passes, what is wrong names the field."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.kit.spec.client import ClientPolicy, effective
from services.kit.spec.resolved import Resolved, parse_resolved
from services.kit.spec.template import Template
from services.kit.spec.window import parse_window

SEED = {
    "job_id": "job_123",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "runtime": {"target": "RunPod", "options": {"host": "1.2.3.4", "ssh_port": 22, "vllm_args": ["--x", "0.90"]}},
    "resource_allocation": {"provision_id": "runpod-abc"},
    "model_template": {
        "name": "llama3-8b-a10",
        "version": "v1",
        "spec": {
            "engine": {"type": "vllm", "version": "0.6.3", "image": "vllm/vllm-openai:latest", "serve_args": ["-x"]},
            "model_source": {"type": "huggingface", "uri": "meta-llama/Llama-3.1-8B-Instruct"},
            "accelerator": {"type": "A10", "count": 1},
            "parallelism": {"tp": 1, "pp": 1, "dp": 1, "ep": 1},
            "supported_endpoints": ["/v1/chat/completions"],
            "deployment_mode": "dedicated",
        },
    },
    "client": {
        "max_concurrency": 256,
        "adaptive_concurrency": True,
        "adaptive_max_factor": 16,
        "retry_policy": {
            "max_retries": 5,
            "base_delay_seconds": 2,
            "max_delay_seconds": 10,
            "no_endpoint_max_retries": 5,
        },
    },
}


def test_the_seeds_example_passes() -> None:
    block = parse_block(orjson.dumps(SEED))
    assert block.target() == "RunPod"
    policy = effective(block.client, Settings())
    assert policy == ClientPolicy(
        max_concurrency=256,
        adaptive_max_factor=16,
        max_retries=5,
        base_delay_seconds=2,
        max_delay_seconds=10,
        no_endpoint_max_retries=5,
    )


def test_each_field_falls_back_by_itself() -> None:
    block = parse_block(b'{"client": {"max_concurrency": 3, "retry_policy": {"max_retries": 0}}}')
    settings = Settings(batch_max_concurrency=9, batch_adaptive_concurrency=False, batch_inference_max_retries=7)
    policy = effective(block.client, settings)
    assert (policy.max_concurrency, policy.adaptive_concurrency, policy.max_retries) == (3, False, 0)
    assert policy.max_delay_seconds == 5.0


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"jobid": "x"}, "aibrix.jobid"),
        ({"client": {"max_concurrency": 257}}, "aibrix.client.max_concurrency"),
        ({"client": {"max_concurrency": 0}}, "aibrix.client.max_concurrency"),
        ({"client": {"max_concurrency": "8"}}, "aibrix.client.max_concurrency"),
        ({"client": {"max_concurrency": True}}, "aibrix.client.max_concurrency"),
        ({"client": {"qps": 1}}, "aibrix.client.qps"),
        ({"client": {"retry_policy": {"max_retries": -1}}}, "aibrix.client.retry_policy.max_retries"),
        ({"runtime": {}}, "aibrix.runtime.target"),
        ({"runtime": {"target": "External", "options": []}}, "aibrix.runtime.options"),
        ({"model_template": {"name": "a", "provider_config": {}}}, "aibrix.model_template.provider_config"),
        ([], "aibrix"),
        ("x", "aibrix"),
    ],
)
def test_a_wrong_field_is_named(block: object, param: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_block(orjson.dumps(block))
    assert raised.value.context["param"] == param


def test_the_limit_is_named() -> None:
    with pytest.raises(InvalidArgument, match="256"):
        parse_block(b'{"client": {"max_concurrency": 1000}}')


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("24h", timedelta(hours=24)),
        ("90min", timedelta(minutes=90)),
        ("1d12h", timedelta(hours=36)),
        ("1d1h1min", timedelta(days=1, hours=1, minutes=1)),
    ],
)
def test_windows(text: str, window: timedelta) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize("text", ["", "24", "0h", "1h1d", "-1h", "24 h", "1w", "٣h", "9" * 30 + "d", "366d", "24h\n"])
def test_wrong_windows(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_window(text)
    assert raised.value.context == {"param": "completion_window", "code": "invalid_value"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_no_block_does_worse_than_an_invalid_argument(block: object) -> None:
    with suppress(InvalidArgument):
        parse_block(orjson.dumps(block) if _fits(block) else b"[]")


def _fits(value: object) -> bool:
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return False
    return True


def test_overrides_know_every_spelling_of_a_flag() -> None:
    args = {"api-key": "x", "max_num_seqs": 4, "seed": 1}
    template = Template.model_validate({"name": "t", "spec": SEED["model_template"]["spec"] | {"engine_args": args}})
    changed = template.with_engine_args({"api_key": None, "SEED": 2, "max_num_seqs": None})
    assert changed.spec.engine_args.model_dump(exclude_unset=True) == {"SEED": 2}
    assert template.spec.engine_args.max_num_seqs == 4


def test_a_batch_of_an_earlier_version_is_read_by_its_inline_template_alone() -> None:
    named = parse_block(b'{"model_template": {"name": "known-elsewhere"}, "profile": {"name": "p"}}')
    assert parse_resolved(None, named) == Resolved()
    inline = parse_block(orjson.dumps({"model_template": SEED["model_template"]}))
    found = parse_resolved(None, inline).template
    assert found is not None
    assert (found.source, found.version) == ("inline", "v1")
