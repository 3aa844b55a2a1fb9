"""Databases as tests want them: with tables, and of one platform, because they share a Redis one after the other."""

from sqlalchemy import text

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
