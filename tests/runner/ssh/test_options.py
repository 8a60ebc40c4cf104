"""Options of batches for machines: what is accepted, what is refused and with which path, and what vLLM is given."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.spec.addresses import AddressPolicy
from services.kit.spec.ssh import RESERVED, is_reserved, parse_ssh
from services.metadata.service.requests import read_block
from services.runner.runtimes.base import RuntimeFailed, Spec
from services.runner.runtimes.ssh_logs import cleaned
from services.runner.runtimes.ssh_plan import Plan, plan
from tests.runner.ssh.support import MODEL, RUNTIMES, spec_for, vllm_template

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
GOOD: list[dict[str, Any]] = [
    {},
    {"host": "203.0.113.9", "ssh_port": 1, "ssh_user": "root", "host_key": KEY},
    {"host": "a.example.com.", "ssh_port": 65535, "ssh_user": "_a-b_1", "host_key": "SHA256:" + "A" * 43},
    {"host": "2001:db8::1", "model": "org/model", "vllm_args": ["--max-model-len", "8192"], "image": "a/b:c@sha256:0"},
    {"host": "h", "model": "a model $(id) 'x' \"y\" ü", "vllm_args": []},
]
BAD: list[tuple[str, Any]] = [
    ("host", ""),
    ("host", "-oProxyCommand=id"),
    ("host", "a b"),
    ("host", "a;b"),
    ("host", "a\nb"),
    ("host", "a@b"),
    ("host", "[::1]"),
    ("host", "1.2.3.4.5"),
    ("host", "2130706433"),
    ("host", "127.1"),
    ("host", "a..b"),
    ("host", "é.example"),
    ("host", "a" * 254),
    ("host", 7),
    ("ssh_port", 0),
    ("ssh_port", 65536),
    ("ssh_port", -1),
    ("ssh_port", "22; id"),
    ("ssh_user", ""),
    ("ssh_user", "-l"),
    ("ssh_user", "Root"),
    ("ssh_user", "a b"),
    ("ssh_user", "a" * 33),
    ("ssh_user", "root\n"),
    ("host_key", "ssh-ed25519"),
    ("host_key", "none"),
    ("host_key", KEY + "\nssh-rsa AAAA"),
    ("host_key", "cert-authority " + KEY),
    ("http_base_url", "ftp://a.example"),
    ("http_base_url", "file:///etc/passwd"),
    ("http_base_url", "http://user:password@a.example"),
    ("http_base_url", "http://a.example:0"),
    ("http_base_url", "http://a.example/?x=1"),
    ("model", "-x"),
    ("model", ""),
    ("model", " a"),
    ("model", "a\nb"),
    ("model", "a\0b"),
    ("model", "\ud800"),
    ("vllm_args", "--a"),
    ("vllm_args", [1]),
    ("vllm_args", ["--seed", "a\0b"]),
    ("vllm_args", ["--seed"] * 513),
    ("vllm_args", ["--seed", "1" * 9000]),
    ("image", "-v"),
    ("image", "a b"),
    ("image", "$(id) x"),
    ("image", ""),
    ("unknown", 1),
]


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("options", GOOD, ids=range(len(GOOD)))
def test_accepted(target: str, options: dict[str, Any]) -> None:
    parse_ssh(target, options)


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name} {str(value)[:30]!a}" for name, value in BAD])
def test_refused_with_the_path_of_the_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_ssh("RunPod", {"host": "a.example", name: value}, flags="any")
    assert refused.value.context["param"].startswith(f"aibrix.runtime.options.{name}")
    assert "password@" not in refused.value.message


@pytest.mark.parametrize("flags", ["listed", "any"])
@pytest.mark.parametrize(
    "words",
    [
        ["--host", "0.0.0.0"],
        ["--host=0.0.0.0"],
        ["--ho", "0.0.0.0"],
        ["--port", "1"],
        ["--api-key", "k"],
        ["--api_key=k"],
        ["--api"],
        ["--uds", "/tmp/s"],
        ["--ssl-keyfile=/k"],
        ["--ssl-ca-certs", "/k"],
        ["--root_path=/x"],
        ["--config", "/etc/passwd"],
        ["@/etc/passwd"],
        ["--"],
    ],
    ids=" ".join,
)
def test_where_the_engine_listens_and_who_may_talk_to_it_is_not_the_batchs(
    words: list[str], flags: Literal["listed", "any"]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_ssh("RunPod", {"vllm_args": words}, flags=flags)
    assert refused.value.context["param"] == "aibrix.runtime.options.vllm_args"


@pytest.mark.parametrize(
    "words",
    [
        ["--trust-remote-code"],
        ["--middleware", "a.b"],
        ["--tool-parser-plugin=/x.py"],
        ["--allowed-local-media-path", "/"],
        ["--chat-template", "/etc/passwd"],
        ["--lora-modules", "a=/b"],
        ["--hf-token", "x"],
        ["--download-dir", "/"],
        ["a-positional"],
        ["--max-model-len", "--trust-remote-code"],
    ],
    ids=" ".join,
)
def test_flags_that_load_code_or_read_files_are_the_operators(words: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="vllm_args"):
        parse_ssh("RunPod", {"vllm_args": words})
    parse_ssh("RunPod", {"vllm_args": words}, flags="any")


@given(st.sampled_from(RESERVED), st.integers(3, 20), st.sampled_from(["", "=1"]), st.booleans())
def test_every_beginning_of_a_reserved_flag_is_reserved(flag: str, length: int, value: str, underscores: bool) -> None:
    """argparse takes the beginning of a flag for the flag, and vLLM an underscore for a dash."""
    word = flag[:length]
    word = "--" + word[2:].replace("-", "_") if underscores else word
    assert is_reserved(word + value)


def test_create_refuses_what_is_wrong_in_a_block() -> None:
    def create(target: str, options: dict[str, Any], flags: Literal["listed", "any"] = "listed") -> None:
        block = json.dumps({"runtime": {"target": target, "options": options}})
        read_block(block, has_default=False, inline_flags=flags)

    create("RunPod", {"model": "m"})  # the planner's draft does not know the machine yet
    for target in RUNTIMES:
        with pytest.raises(InvalidArgument) as refused:
            create(target, {"host": "-x"})
        assert refused.value.context["param"] == "aibrix.runtime.options.host"
        with pytest.raises(InvalidArgument, match="vllm_args"):
            create(target, {"vllm_args": ["--trust-remote-code"]})
        create(target, {"vllm_args": ["--trust-remote-code"]}, "any")


def test_only_runpod_takes_a_base_url() -> None:
    with pytest.raises(InvalidArgument, match="SSH only"):
        parse_ssh("LambdaCloud", {"http_base_url": "https://a.example"})


# What vLLM is given


def planned(spec: Spec, target: str = "RunPod") -> Plan:
    return plan(spec, target, "root", Settings(), AddressPolicy())


HOST = {"host": "203.0.113.9"}
ALLOCATION = {"resource_allocation": {"provision_id": "prov_1"}}


def test_the_model_of_the_batch_without_a_template() -> None:
    found = planned(spec_for("RunPod", HOST))
    assert (found.model, found.flags) == (MODEL, ())
    assert (found.host, found.port, found.user, found.health_path) == ("203.0.113.9", 22, "root", "/health")
    assert found.image == "vllm/vllm-openai:latest"


def test_another_model_is_served_by_the_name_that_the_lines_use() -> None:
    found = planned(spec_for("RunPod", HOST | {"model": "org/weights", "vllm_args": ["--seed", "1"]}))
    assert (found.model, found.flags) == ("org/weights", ("--seed", "1", f"--served-model-name={MODEL}"))
    named = planned(spec_for("RunPod", HOST | {"model": "org/weights", "vllm_args": ["--served-model-name", "x"]}))
    assert named.flags == ("--served-model-name", "x")


def test_the_template_says_what_is_loaded_and_how() -> None:
    template = vllm_template(serve_args=["--enforce-eager"], health_endpoint="/ping", image="acme/vllm:1")
    template["spec"]["model_source"]["revision"] = "abc"
    template["spec"]["engine_args"] = {"max_num_seqs": 8}
    found = planned(spec_for("RunPod", HOST, model_template=template))
    assert found.model == "acme/weights"
    assert found.flags == (
        "--revision",
        "abc",
        "--max-num-seqs",
        "8",
        "--enforce-eager",
        f"--served-model-name={MODEL}",
    )
    assert (found.health_path, found.image) == ("/ping", "acme/vllm:1")


def test_what_the_planner_left_out_stays_out() -> None:
    """Its block has the same template; whether engine_args reach clouds is CLOUD_RENDER_ENGINE_ARGS, and stands in vllm_args."""
    template = vllm_template()
    template["spec"]["engine_args"] = {"max_num_seqs": 8}
    found = planned(spec_for("RunPod", HOST | {"model": MODEL}, model_template=template, **ALLOCATION))
    assert (found.model, found.flags) == ("acme/weights", (f"--served-model-name={MODEL}",))
    assert found.provision_id == "prov_1"


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ({"runtime": {"target": "RunPod", "options": {}}}, "no machine"),
        ({"runtime": {"target": "RunPod", "options": HOST}, "model_template": "mock"}, "start vllm"),
        ({"runtime": {"target": "RunPod", "options": HOST}, "model_template": "hdfs"}, "does not load from hdfs"),
        ({"runtime": {"target": "RunPod", "options": HOST}, "model": None}, "no model"),
        ({"runtime": {"target": "RunPod", "options": HOST}, "model_template": "keyed"}, "how the engine is reached"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_no_machine_can_run(block: dict[str, Any], why: str) -> None:
    template = vllm_template(serve_args=["--api-key", "k"] if block.get("model_template") == "keyed" else [])
    if block.get("model_template") == "mock":
        template["spec"]["engine"]["type"] = "mock"
    if block.get("model_template") == "hdfs":
        template["spec"]["model_source"]["type"] = "hdfs"
    more = {"model_template": template} if "model_template" in block else {}
    spec = spec_for("RunPod", block["runtime"]["options"], **more)
    if "model" in block:
        spec = replace(spec, model=None, block=spec.block.model_copy(update={"model": None}))
    with pytest.raises(RuntimeFailed, match=why) as failed:
        planned(spec)
    assert not failed.value.retryable


@pytest.mark.parametrize("key", ["", "../x", "-x", "a/b", "a b", "x" * 129])
def test_an_id_that_cannot_be_a_folder(key: str) -> None:
    with pytest.raises(RuntimeFailed, match="id"):
        planned(spec_for("RunPod", HOST, key=key))


# What is shown of a log


@pytest.mark.parametrize(
    "secret",
    [
        "HF_TOKEN=hf_abcdefghijkl",
        "export OPENAI_API_KEY='sk-abcdefghijkl'",
        "'api_key': ['abcdefghijkl']",
        "Authorization: Bearer abcdefghijkl",
        "https://user:abcdefghijkl@hub.example/x",
        "password = abcdefghijkl",
        "the key is abcdefghijkl",
    ],
)
def test_a_log_is_shown_without_secrets(secret: str) -> None:
    shown = cleaned(f"before\n{secret}\nafter\n", "abcdefghijkl" if "the key" in secret else None)
    assert "abcdefghijkl" not in shown
    assert shown.startswith("before\n")
    assert shown.endswith("\nafter")


def test_a_log_is_shown_bounded_and_plain() -> None:
    shown = cleaned("\x1b[31m" + "x" * 100_000 + "\n" + "\n".join(f"line {n}" for n in range(100)))
    assert shown.split("\n") == [f"line {n}" for n in range(60, 100)]
    assert len(cleaned("x" * 1_000_000)) <= 16 * 1024
    assert cleaned("max_tokens: 512") == "max_tokens: 512"
