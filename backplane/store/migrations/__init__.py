"""Alembic's migrations, run at start under a lock, so that any number of processes may start at once.

PostgreSQL: an advisory lock of the session. SQLite: the write lock of the file. Both wait until the first one is
through, and find nothing left to do then.

A release that was rolled back meets a database that is newer than itself: it leaves the tables as they are, says so,
and works on. So from 0006 on a migration may only add to what the release before it uses.
"""

from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from backplane.store.database import Database

log = structlog.get_logger()

LOCK = 7_305_210_417


async def migrate(database: Database) -> None:
    """Bring the tables to the newest state. Raises Unavailable when the database does not answer."""
    await database.write(_upgrade)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    present = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present and present not in known:
        log.warning("the database is of a newer release than this one, and stays as it is", revision=present)
        return
    command.upgrade(config, "head")
