"""The kept events of runs. Who may add one is decided by whoever opens the transaction (`store.runs`)."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Integer, bindparam, func, select, text

from backplane.events import Event, decode
from backplane.store.database import Database
from backplane.store.tables import events

# Adding an event again changes nothing, so a write whose answer was lost can be repeated.
_ADD = text("INSERT INTO events (run_id, id, line) VALUES (:run_id, :id, :line) ON CONFLICT DO NOTHING")

_AFTER = (
    select(events.c.line)
    .where(events.c.run_id == bindparam("of_run"), events.c.id > bindparam("cursor"))
    .order_by(events.c.id)
    .limit(bindparam("most", type_=Integer))
)
_LAST = select(func.max(events.c.id)).where(events.c.run_id == bindparam("of_run"))


def add_events(connection: Connection, new: Iterable[Event]) -> None:
    rows = [{"run_id": event.run_id, "id": event.id, "line": event.line} for event in new]
    if rows:
        connection.execute(_ADD, rows)


def last_event_id(connection: Connection, run_id: str) -> int:
    """0 when there is none."""
    found: int | None = connection.scalar(_LAST, {"of_run": run_id})
    return found or 0


class Events:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, run_id: str, cursor: int, limit: int) -> list[Event]:
        """Up to `limit` events with an id over `cursor`, in order."""
        values = {"of_run": run_id, "cursor": cursor, "most": limit}
        lines = await self._database.read(lambda connection: connection.execute(_AFTER, values).scalars().all())
        return [decode(line) for line in lines]

    async def last_ids(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Of those runs that have events."""
        query = (
            select(events.c.run_id, func.max(events.c.id).label("last_id"))
            .where(events.c.run_id.in_(run_ids))
            .group_by("run_id")
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.run_id: row.last_id for row in rows}

    async def last_id(self, run_id: str) -> int:
        return await self._database.read(lambda connection: last_event_id(connection, run_id))
