"""`aibrix-batch migrate`: once or again, alone or at the same time as others, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import asyncpg
import pytest

from cli.main import Keeper
from cli.migrate import URLS
from tests.cli.support import COMMAND, PATIENCE_S, cli, environment

VERSIONS = {"metadata": "alembic_version", "planner": "alembic_version_planner", "console": "alembic_version_console"}
SAID = [f"{role}: the schema is that of this version" for role in VERSIONS]


def in_one_database(url: str) -> dict[str, str]:
    return {f"AIBRIX_{role.upper()}__DATABASE_URL": url for role in VERSIONS}


def test_the_flag_names_the_roles_that_have_tables() -> None:
    assert {str(one) for one in Keeper} == URLS.keys() == VERSIONS.keys()


def test_again_changes_nothing(tmp_path: Path) -> None:
    for logged in (3, 0):
        done = cli("migrate", AIBRIX_DATA_DIR=str(tmp_path))
        assert (done.returncode, done.stdout.splitlines()) == (0, SAID)
        assert done.stderr.count("schema brought up") == logged
    assert {path.name for path in tmp_path.glob("*.db")} == {f"{role}.db" for role in VERSIONS}


def test_only_the_roles_that_are_named(tmp_path: Path) -> None:
    done = cli("migrate", "--role", "console", AIBRIX_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stdout.splitlines()) == (0, SAID[2:])
    assert [path.name for path in tmp_path.glob("*.db")] == ["console.db"]


async def test_several_at_once_on_one_empty_database(postgres_url: str) -> None:
    env = environment(**in_one_database(postgres_url))
    pipe = asyncio.subprocess.PIPE
    both = [await asyncio.create_subprocess_exec(*COMMAND, "migrate", env=env, stdout=pipe, stderr=pipe) for _ in "123"]
    async with asyncio.timeout(PATIENCE_S):
        said = [await one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0, 0], said
    logged = b"".join(errors for _, errors in said)
    assert logged.count(b"schema brought up") == len(VERSIONS), "each schema was made once"
    connection = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))
    try:
        for table in VERSIONS.values():
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 1
    finally:
        await connection.close()


def test_a_schema_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    assert cli("migrate", AIBRIX_DATA_DIR=str(tmp_path)).returncode == 0
    connection = sqlite3.connect(tmp_path / "metadata.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for argv in (("migrate",), ("serve", "--role", "metadata")):
        done = cli(*argv, AIBRIX_DATA_DIR=str(tmp_path), AIBRIX_METADATA__LISTEN="127.0.0.1:0")
        assert done.returncode == 1
        assert "schema 9999 of a later version" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://user:s3cret@127.0.0.1:1/db",
        "postgresql+asyncpg://user:s3cret@[broken/db",
        "nothing+such://user:s3cret@127.0.0.1/db",
        "user:s3cret",
    ],
)
def test_a_database_that_is_not_there_is_one_line_without_the_password(url: str) -> None:
    done = cli("migrate", "--role", "planner", AIBRIX_PLANNER__DATABASE_URL=url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: planner: ")
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


async def test_a_user_without_rights_is_told_what_the_database_said(postgres_url: str) -> None:
    admin = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))
    name = "reader_" + postgres_url.rpartition("_")[2][:8]
    try:
        await admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        await admin.execute(f"CREATE ROLE {name} LOGIN")
        url = postgres_url.replace("postgres@", f"{name}@")
        done = await asyncio.to_thread(cli, "migrate", "--role", "metadata", AIBRIX_METADATA__DATABASE_URL=url)
        missing = postgres_url + "_not"
        other = await asyncio.to_thread(cli, "migrate", "--role", "metadata", AIBRIX_METADATA__DATABASE_URL=missing)
    finally:
        await admin.execute(f"DROP ROLE IF EXISTS {name}")
        await admin.close()
    assert (done.returncode, other.returncode) == (1, 1)
    assert "permission denied" in done.stderr.splitlines()[-1]
    assert "does not exist" in other.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr + other.stderr
