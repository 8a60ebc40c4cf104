"""From a template's engine to an argument list: typed flags, the administrator's last, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.spec.template import TemplateSpec
from services.runner.engines.mock import parse_arguments
from services.runner.engines.registry import Place, command

PLACE = Place(host="127.0.0.1", port=1234, port_file=Path("/run/engine.port"))


def template(engine_args: dict[str, Any] | None = None, **engine: Any) -> TemplateSpec:
    return TemplateSpec.model_validate(
        {
            "engine": {"type": "mock", **engine},
            "model_source": {"type": "local", "uri": "none"},
            "accelerator": {"type": "cpu", "count": 1},
            "supported_endpoints": ["/v1/chat/completions"],
            "engine_args": engine_args or {},
        }
    )


def test_flags_arrive_as_the_engine_reads_them() -> None:
    spec = template({"latency_ms": 5, "seed": 7}, serve_args=["--seed=8", "--error-rate", "0.25"])
    built = command(spec, PLACE)
    assert built.reports_port
    assert built.arguments[:3] == (sys.executable, "-m", "services.runner.engines.mock")
    options = parse_arguments(built.arguments[3:])
    assert (options.latency_ms, options.seed, options.error_rate) == (5, 8, 0.25)
    assert (options.host, options.port, options.port_file) == ("127.0.0.1", 0, "/run/engine.port")


@pytest.mark.parametrize(
    ("spec", "param"),
    [
        (template({"latency_ms": "5"}), "engine_args.latency_ms"),
        (template({"capacity": 0}), "engine_args.capacity"),
        (template({"port": 80}), "engine_args.port"),
        (template({"--host": "0.0.0.0"}), "engine_args.--host"),
        (template(serve_args=["--host", "0.0.0.0"]), "engine.serve_args.host"),
        (template(serve_args=["--seed", "x"]), "engine.serve_args.seed"),
        (template(serve_args=["seed", "1"]), "engine.serve_args"),
        (template(serve_args=["--seed"]), "engine.serve_args"),
        (template(type="vllm"), "engine.type"),
    ],
)
def test_other_flags_and_engines_are_refused_with_their_path(spec: TemplateSpec, param: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        command(spec, PLACE)
    assert refused.value.context["param"] == f"aibrix.model_template.spec.{param}"
