"""What a user prefers in the console: one JSON object each, which the platform does not read."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from backplane.errors import Conflict
from backplane.store.database import Database
from backplane.store.people.tables import preferences
from backplane.store.tables import users


class Preferences:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, user_id: str) -> tuple[dict[str, Any], int]:
        """With their version; an empty object of version 0 where none were put yet."""
        return await self._database.read(lambda connection: _of(connection, user_id))

    async def put(self, user_id: str, value: dict[str, Any], *, version: int | None = None) -> int:
        """Replace them. Returns the new version. Raises Conflict when they have another version than this one."""

        def write(connection: Connection) -> int:
            # One writer a user at a time, so that of two with the same version one is refused.
            connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
            _, there = _of(connection, user_id)
            if version is not None and version != there:
                raise Conflict(
                    f"the preferences have the version {there} by now, and not {version}; get them, and put your "
                    "change into those"
                )
            values = {"value": value, "version": there + 1, "updated_at": datetime.now(UTC)}
            if there:
                connection.execute(update(preferences).where(preferences.c.user_id == user_id).values(values))
            else:
                connection.execute(insert(preferences).values(user_id=user_id, **values))
            return there + 1

        return await self._database.write(write)


def _of(connection: Connection, user_id: str) -> tuple[dict[str, Any], int]:
    row = connection.execute(select(preferences).where(preferences.c.user_id == user_id)).one_or_none()
    return (row.value, row.version) if row is not None else ({}, 0)
