"""Alembic's migrations, run at start under a lock, so that any number of processes may start at once.

PostgreSQL: an advisory lock of the session. SQLite: the write lock of the file. Both wait until the first one is
through, and find nothing left to do then.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from backplane.store.database import Database

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
    command.upgrade(config, "head")
