"""docker-compose.yml: every rule that it must keep, checked on the parsed file."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from typing import Any

import pytest

from services.__main__ import ROLES
from services.kit.settings import environment_names
from tests.deploy.files import ROOT, compose, dockerfile, example_variables, interpolated, variables_of

FILE = compose()
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"] == "aibrix-batch"}
ONE_SHOT = {name for name, one in SERVICES.items() if one["restart"] == "no"}
# Of the Compose specification, what a service here may say.
SERVICE_KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "image",
    "ports",
    "read_only",
    "restart",
    "secrets",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "volumes",
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
DURATION = re.compile(r"\d+(ms|s|m|h)")


def depends(name: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = SERVICES[name].get("depends_on", {})
    return found


def test_only_keys_that_compose_knows() -> None:
    assert {key for key in FILE if not key.startswith("x-")} == {"services", "volumes", "secrets"}
    for name, service in SERVICES.items():
        assert service.keys() <= SERVICE_KEYS, name


def test_every_role_is_there_and_runners_are_two() -> None:
    roles = [service["command"] for service in OURS.values()]
    assert all(command[0] == "--role" and len(command) == 2 for command in roles)
    assert sorted(command[1] for command in roles) == sorted([*ROLES, "runner"])
    assert {"postgres", "objects"} <= SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched(name: str) -> None:
    if name in ONE_SHOT:
        waits = [depends(other)[name]["condition"] for other in SERVICES if name in depends(other)]
        assert set(waits) == {"service_completed_successfully"}
        return
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert all(DURATION.fullmatch(check[key]) for key in ("interval", "timeout", "start_period"))
    assert check["retries"] >= 3
    if name in OURS:
        assert check["test"][1:] == ["aibrix-batch", "health", *SERVICES[name]["command"]]


def test_order_of_starting() -> None:
    for name in SERVICES:
        for other, how in depends(name).items():
            assert how["condition"] in CONDITIONS
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
    order = list(TopologicalSorter({name: list(depends(name)) for name in SERVICES}).static_order())
    assert set(order) == SERVICES.keys()
    for earlier, later in (
        ("postgres", "metadata"),
        ("objects", "objects-bucket"),
        ("objects-bucket", "metadata"),
        ("metadata", "runner-1"),
        ("metadata", "runner-2"),
        ("metadata", "planner"),
        ("planner", "console"),
        ("console", "gateway"),
    ):
        assert order.index(earlier) < order.index(later)


def test_settings_exist() -> None:
    known = environment_names().keys()
    for name, service in OURS.items():
        assert service["environment"].keys() <= known, name


def test_addresses_lead_to_services_that_listen_there() -> None:
    env = dockerfile()[-1].env()
    for service in OURS.values():
        for name, value in service["environment"].items():
            if name.endswith("_ADDR"):
                role = name.removeprefix("AIBRIX_").removesuffix("_ADDR").lower()
                port = env[f"AIBRIX_{role.upper()}__LISTEN"].rpartition(":")[2]
                assert value == f"{role}:{port}"
                assert OURS[role]["command"] == ["--role", role]


def test_metadata_and_runners_judge_addresses_alike() -> None:
    name = "AIBRIX_EXTERNAL__ALLOWED_HOSTS"
    judges = ("metadata", "runner-1", "runner-2")
    assert len({OURS[judge]["environment"][name] for judge in judges}) == 1


def test_no_credential_is_written_down() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|ROOT_USER|MC_HOST", key) or "@" in str(value):
                assert re.search(r"\$\{\w+:\?", value), f"{name}: {key}"
                # Nothing of a URL's credentials but variables.
                assert not re.search(r"://[^$@/]*:[^$@/]+@", value), f"{name}: {key}"


def test_what_is_required_is_in_the_example_and_without_it_nothing_starts() -> None:
    variables = variables_of(FILE)
    required = {name for name, kind in variables.items() if kind == "?"}
    example = example_variables()
    assert required <= example.keys()
    assert example.keys() <= variables.keys()
    assert set(example.values()) == {""}
    with pytest.raises(KeyError, match="run make env"):
        interpolated(FILE, example)
    filled = interpolated(FILE, dict.fromkeys(required, "x1"))
    assert "$" not in str(filled)


def test_git_holds_no_secret() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert ".env" in ignored
    assert FILE["secrets"]["api_keys"]["file"] == "./deploy/secrets/api_keys"
    assert "deploy/secrets/" in ignored


def test_what_is_mounted_is_declared() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in FILE["volumes"]
        assert set(service.get("secrets", [])) <= FILE["secrets"].keys()
    assert OURS["gateway"]["environment"]["AIBRIX_API_KEYS_FILE"] == "/run/secrets/api_keys"


def test_only_the_gateway_is_published_and_on_loopback() -> None:
    assert {name: one["ports"] for name, one in SERVICES.items() if "ports" in one} == {
        "gateway": ["127.0.0.1:8080:8080"]
    }


def test_our_containers_have_no_more_rights_than_they_need() -> None:
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_images_of_others_are_pinned() -> None:
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.search(r":(?!latest)[\w.-]+$", service["image"]), name
