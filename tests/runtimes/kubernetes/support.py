"""Plans and manifests of small templates, and the golden files: what is given, and the manifests that come of it.

`python -m tests.runtimes.kubernetes.support` writes the manifests anew, for people to look at the difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.kit.spec.kubernetes import KUBERNETES, KUBERNETES_JOB
from services.runner.runtimes.base import Spec
from services.runner.runtimes.kubernetes.deployment import render_deployment, render_service
from services.runner.runtimes.kubernetes.job import render_job
from services.runner.runtimes.kubernetes.plan import Plan, plan

GOLDEN = Path(__file__).parent / "golden"
KEY = "batch_0123456789abcdef0123456789abcdef"
MARK = "00112233445566778899aabbccddeeff"
NOW = 1_800_000_000.0
UID = "6f1d2c3b-0000-4000-8000-000000000001"
Manifest = dict[str, Any]


def settings(**given: Any) -> Settings:
    return Settings.model_validate({"kubernetes": given})


def template(engine: str = "vllm", **changes: Any) -> dict[str, Any]:
    """A spec; `changes` by dotted path, such as `engine.image`."""
    spec: dict[str, Any] = {
        "engine": {"type": engine},
        "model_source": {"type": "huggingface", "uri": "Qwen/Qwen3-0.6B"},
        "accelerator": {"type": "L4", "count": 1},
        "supported_endpoints": ["/v1/chat/completions"],
    }
    for path, value in changes.items():
        *above, last = path.replace("__", ".").split(".")
        place = spec
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return spec


def spec_of(
    target: str,
    template: dict[str, Any],
    *,
    key: str = KEY,
    options: dict[str, Any] | None = None,
    name: str = "qwen3",
    version: str | None = "v1",
    window_s: float | None = 86_400,
    source: str = "registry",
    **block: Any,
) -> Spec:
    block["runtime"] = {"target": target, "options": options or {}}
    block["model_template"] = {"name": name, "version": version, "spec": template}
    made = parse_block(json.dumps(block))
    return Spec(
        key=key,
        block=made,
        template=made.model_template.spec if made.model_template else None,
        template_source=source,  # type: ignore[arg-type]
        model=made.model,
        expire_time=None if window_s is None else NOW + window_s,
    )


def planned(target: str, template: dict[str, Any], *, settings: Settings | None = None, **given: Any) -> Plan:
    spec = spec_of(target, template, **given)
    return plan(spec, target, settings or Settings(), "engines", mark=MARK, now=NOW)


def rendered(plan: Plan) -> list[Manifest]:
    if plan.target == KUBERNETES_JOB:
        return [render_job(plan)]
    deployment = render_deployment(plan)
    owner = {**deployment, "metadata": {**deployment["metadata"], "uid": UID}}
    return [deployment, render_service(plan, owner)]


def golden(path: Path) -> tuple[Plan, list[Manifest]]:
    """The plan of what a file gives, and the manifests that it holds."""
    content = yaml.safe_load(path.read_text())
    given = content["given"]
    chosen = settings(**given.pop("settings", {}))
    target = given.pop("target", KUBERNETES)
    return planned(target, given.pop("template"), settings=chosen, **given), content.get("manifests", [])


def write(path: Path) -> None:
    made, _ = golden(path)
    given = yaml.safe_load(path.read_text())["given"]
    content = {"given": given, "manifests": json.loads(json.dumps(rendered(made)))}
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))


if __name__ == "__main__":
    for path in sorted(GOLDEN.glob("*.yaml")):
        write(path)
