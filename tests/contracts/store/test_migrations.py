"""A database of each release that there was, with rows in it, becomes one of this release and keeps them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, DateTime, Integer, MetaData, insert

from backplane.domain.runs import RunStatus
from backplane.domain.users import Tier
from backplane.store import Store, migrations
from backplane.store.database import Database
from backplane.store.tables import metadata
from tests.databases import upgrade

REVISIONS = [script.revision for script in ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions()][
    ::-1
]
USER, RUN = "11111111-1111-4111-8111-111111111111", "22222222-2222-7222-8222-222222222222"
VALUES: dict[str, dict[str, Any]] = {
    "users": {"id": USER, "name": "ada", "tier": Tier.STANDARD.value},
    "tokens": {"id": "t", "user_id": USER, "digest": "d" * 64},
    "runs": {"id": RUN, "user_id": USER, "status": RunStatus.COMPLETED.value, "prompt": "of an older release"},
    "events": {"run_id": RUN, "id": 1, "type": "log", "line": "{}", "data": "{}"},
    "steps": {"run_id": RUN, "step_id": "a", "tool": "shell", "status": "completed"},
}


def add_rows(connection: Connection) -> None:
    """A row in each of these tables, as they are by now. What has to be there and is not named is empty."""
    found = MetaData()
    found.reflect(connection, only=lambda name, _: name in VALUES)
    for table in found.sorted_tables:
        values = dict(VALUES[table.name])
        for column in table.columns:
            if column.name not in values and not column.nullable and column.server_default is None:
                is_json = column.name in ("metadata", "data", "line")
                empty = 0 if isinstance(column.type, Integer) else "{}" if is_json else "x"
                values[column.name] = datetime.now(UTC) if isinstance(column.type, DateTime) else empty
        known = {name: value for name, value in values.items() if name in table.columns}
        connection.execute(insert(table), known)


def differences(connection: Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


@pytest.mark.slow
@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_database_of_any_release_becomes_one_of_this_release_and_keeps_its_rows(
    empty_database_url: str, revision: str
) -> None:
    store = Store(Database(empty_database_url))
    try:
        await store.database.write(lambda connection: upgrade(connection, revision))
        await store.database.write(add_rows)
        assert await store.migrate() is None
        assert await store.database.read(differences) == []
        run = await store.runs.get(USER, RUN)
        assert (run.status, run.prompt) == (RunStatus.COMPLETED, "of an older release")
        assert [step.step_id for step in await store.journal.steps(RUN)] == ["a"]
        user = await store.users.create_token("ada", Tier.STANDARD)
        assert user[0].user.id == USER
    finally:
        await store.database.close()
