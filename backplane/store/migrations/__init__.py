"""Alembic's migrations, run at start under a lock, so that any number of processes may start at once.

PostgreSQL: an advisory lock of the session. SQLite: the write lock of the file. Both wait until the first one is
through, and find nothing left to do then.

A release that was rolled back meets a database that is newer than itself: it leaves the tables as they are, says so,
and works on. So from 0006 on a migration may only add to what the release before it uses.
"""

import re
from functools import cache
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from backplane.errors import Unavailable
from backplane.store.database import Database

log = structlog.get_logger()

LOCK = 7_305_210_417
_RIGHT = text(
    "SELECT current_user, current_schema(), coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
)


async def migrate(database: Database) -> str | None:
    """Bring the tables to the newest state. The revision of a newer release, where that made them: they stay as they
    are then. Raises Unavailable when the database does not answer, or does not let its user make tables."""
    return await database.write(_upgrade)


def _upgrade(connection: Connection) -> str | None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    present = MigrationContext.configure(connection).get_current_revision()
    known = _revisions()
    if present == known[0]:
        return None
    if present and present not in known:
        log.warning("the database is of a newer release than this one, and stays as it is", revision=present)
        return present
    _may_make_tables(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return None


@cache
def _revisions() -> tuple[str, ...]:
    """The revisions of this release, the newest first. To find them loads all migrations."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _may_make_tables(connection: Connection) -> None:
    """From PostgreSQL 15 on, not everybody may make tables in the schema `public`. Raises Unavailable."""
    if connection.dialect.name != "postgresql":
        return
    user, schema, may = connection.execute(_RIGHT).one()
    if may:
        return
    where = f"the schema {schema}" if schema else "any schema of its search_path"
    grant = f"GRANT CREATE, USAGE ON SCHEMA {_quoted(schema or 'public')} TO {_quoted(user)};"
    message = f"the user {user} of DATABASE_URL may not make tables in {where}: let its owner run {grant}"
    raise Unavailable(message, part="database", refuses=True)


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else f'"{escaped}"'
