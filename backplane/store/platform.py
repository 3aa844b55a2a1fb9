"""What belongs to the database as a whole: its id, by which the queues of two platforms in one Redis are
distinguished."""

import uuid

from sqlalchemy import Connection, select, text

from backplane.store.database import Database
from backplane.store.tables import platform

_ID = "id"
_MAKE = text("INSERT INTO platform (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING")


async def platform_id(database: Database, *, make: bool) -> str:
    """The id, the same for all processes, also when several ask at once. It is empty when there is none, and none is to
    be made."""

    def ask(connection: Connection) -> str:
        return connection.scalar(select(platform.c.value).where(platform.c.name == _ID)) or ""

    def insert(connection: Connection) -> str:
        connection.execute(_MAKE, {"name": _ID, "value": uuid.uuid4().hex})
        return ask(connection)

    known = await database.read(ask)
    return known if known or not make else await database.write(insert)
