"""Databases as tests want them: with tables, and of one platform, because they share a Redis one after the other."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.engine import Connection

from backplane.store import migrations
from backplane.store.database import Database
from backplane.store.migrations import migrate

_ITS_ID = text("INSERT INTO platform (name, value) VALUES ('id', 'tests') ON CONFLICT DO NOTHING")


async def make_tables(url: str) -> None:
    database = Database(url)
    try:
        await migrate(database)
        await database.write(lambda connection: connection.execute(_ITS_ID))
    finally:
        await database.close()


def upgrade(connection: Connection, revision: str) -> None:
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """The tables as an older release has them."""
    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config
