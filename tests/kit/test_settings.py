"""Settings come from the environment, and a name that nobody reads stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.kit import settings


def test_the_seeds_own_names_and_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIBRIX_METADATA_ADDR", "metadata:1")
    monkeypatch.setenv("AIBRIX_BATCH_MAX_CONCURRENCY", "17")
    monkeypatch.setenv("AIBRIX_MDS_HTTP_BODY_LOG", "1")
    monkeypatch.setenv("AIBRIX_RUNNER__SLOTS", "2")
    monkeypatch.setenv("AIBRIX_LOCAL__COMMANDS", '{"a": ["b", "{port}"]}')
    made = settings.load()
    assert made.metadata_addr == "metadata:1"
    assert made.batch_max_concurrency == 17
    assert made.mds_http_body_log
    assert made.runner.slots == 2
    assert made.local.commands == {"a": ["b", "{port}"]}


@pytest.mark.parametrize("name", ["AIBRIX_METADTA_ADDR", "AIBRIX_METADATA__DATABSE_URL", "AIBRIX_NOPE__X"])
def test_a_misspelt_name_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ValueError, match=name):
        settings.load()


def test_a_wrong_value_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIBRIX_BATCH_MAX_CONCURRENCY", "257")
    with pytest.raises(ValidationError):
        settings.load()


def test_every_name_is_described() -> None:
    undescribed = [
        name
        for name, text in settings.environment_names().items()
        if not text
        and name not in ("AIBRIX_OBJECTS__ACCESS_KEY_ID", "AIBRIX_OBJECTS__SECRET_ACCESS_KEY")
        and name not in ("AIBRIX_OBJECTS__REGION", "AIBRIX_LOG__LEVEL")
    ]
    assert undescribed == []


def test_a_child_process_gets_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIBRIX_OBJECTS__SECRET_ACCESS_KEY", "canary")
    child = settings.child_environment(PORT="1")
    assert child["PORT"] == "1"
    assert "canary" not in str(child)


def test_defaults_live_in_the_data_folder(tmp_path: Path) -> None:
    made = settings.Settings(data_dir=tmp_path)
    assert str(tmp_path) in made.database_url()
    assert made.objects_url().startswith(str(tmp_path))
    assert made.runner_dir().is_relative_to(tmp_path)


def test_a_secret_is_not_printed() -> None:
    made = settings.Objects(secret_access_key="canary")
    assert "canary" not in repr(made)
