"""Lists cost what a page costs, however many things there are: the databases' own plans say so, on full tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from services.console.migrate import migrate
from services.console.service.listing import NONE_YET
from services.console.store import models, templates
from services.console.store.tables import deployment_templates, schema, template_lists
from services.console.store.tables import models as models_table
from services.kit.sql import EPOCH, Database, create_engine
from services.kit.transactions import Transactions

ROWS = 5000
MARK: Any = {"create_time": EPOCH.replace(year=2026, month=7), "id": "m5"}


@pytest.fixture
async def transactions(database_url: str) -> AsyncIterator[Transactions]:
    """Many models of one project among those of others, and many templates of one of them; some deleted."""
    engine = create_engine(database_url)
    database = Database(engine)
    await migrate(database)

    def rows(number: int) -> dict[str, Any]:
        time = EPOCH.replace(year=2026, month=1 + number % 12, day=1 + number % 28)
        dead = time if number % 50 == 0 else None
        return {"create_time": time, "update_time": time, "delete_time": dead, "project_id": f"p{number % 4}"}

    def a_model(number: int) -> dict[str, Any]:
        own = {"row_id": str(number), "id": f"m{number}", "name": f"n{number}", "search_name": f"n{number}"}
        return rows(number) | own | {"category": f"c{number % 3}"}

    def a_template(number: int) -> dict[str, Any]:
        own = {
            "id": f"t{number}",
            "project_id": "p1",
            "model_id": f"m{number % 2}",
            "name": f"n{number % 500}",
            "version": f"v{number}",
        }
        return rows(number) | own | {"status": "draft" if number % 3 else "active", "spec_json": "{}"}

    async def fill(connection: Any) -> None:
        await connection.execute(models_table.insert(), [a_model(number) for number in range(ROWS)])
        await connection.execute(deployment_templates.insert(), [a_template(number) for number in range(ROWS)])
        await connection.execute(sa.text("ANALYZE"))

    await database.write(fill)
    yield Transactions(database)
    await engine.dispose()


async def plan(transactions: Transactions, statement: sa.Select[Any]) -> str:
    """The plan as text, for values as they are sent."""

    async def work(tx: Any) -> str:
        dialect = tx.connection.dialect
        text = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        word = "EXPLAIN QUERY PLAN" if dialect.name == "sqlite" else "EXPLAIN"
        found = await tx.connection.exec_driver_sql(f"{word} {text.replace('%%', '%')}")
        return "\n".join(str(tuple(row)) for row in found)

    return await transactions.read(work)


STATEMENTS = {
    "models": (models.page("p1", None, 21), "ix_models_list"),
    "models behind a mark": (models.page("p1", MARK, 21), "ix_models_list"),
    "models of a category": (models.page("p1", MARK, 21, category="c1"), "ix_models_category"),
    "templates": (templates.page("p1", "m1", None, 21), "ix_deployment_templates_list"),
    "templates behind a mark": (templates.page("p1", "m1", MARK, 21), "ix_deployment_templates_list"),
    "templates of a status": (templates.page("p1", "m1", MARK, 21, status="draft"), "ix_deployment_templates_list"),
    "all templates": (templates.page_of_all(None, 101), "ix_deployment_templates_all"),
    "all templates, further on": (templates.page_of_all(("n3", "v3"), 101), "ix_deployment_templates_all"),
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_page_is_read_from_its_index_in_order(transactions: Transactions, name: str) -> None:
    statement, index = STATEMENTS[name]
    shown = await plan(transactions, statement)
    assert index in shown
    assert "Sort" not in shown
    assert "TEMP B-TREE" not in shown
    assert "Seq Scan" not in shown


async def test_the_question_whether_anything_changed_reads_one_row(transactions: Transactions) -> None:
    statement = sa.select(template_lists.c.etag).where(template_lists.c.id == templates.THE_LIST)
    shown = await plan(transactions, statement)
    assert "SCAN template_lists" not in shown
    assert "deployment_templates" not in shown

    async def work(tx: Any) -> str:
        return await templates.find_etag(tx) or NONE_YET

    assert await transactions.read(work) == NONE_YET


def test_every_table_of_the_role_has_a_key() -> None:
    assert all(table.primary_key.columns for table in schema.tables.values())
