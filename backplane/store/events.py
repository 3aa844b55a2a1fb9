"""The stored events of runs. The caller that opens the transaction decides who may add one (`store.runs`).

Besides its number in its run, an event has a place among all events of its user: the transaction that wrote it, and its
turn in there. Places are given without a lock, so one may become visible after a higher one. But transactions are
numbered too, and the database knows the lowest that is still open: a reader that stays below it misses nothing, and
sees every event at the same place for ever. SQLite has one writer at a time: there the turn alone is the order.

Within a run places and numbers rise together: a writer of an event keeps the run's row locked until the commit.
"""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, Integer, bindparam, func, select, text, tuple_

from backplane.domain.events import Event, Place, UserEvents, decode
from backplane.store.database import Database, Query
from backplane.store.tables import events

# Adding an event again changes nothing, so a write whose answer was lost can be repeated.
_ADD = text(
    "INSERT INTO events (run_id, id, user_id, line) VALUES (:run_id, :id, :user_id, :line) ON CONFLICT DO NOTHING"
)
# One statement for all, and each column one value: the driver's work for a row falls to an eighth of a statement each.
_ADD_ON_POSTGRES = text(
    "INSERT INTO events (run_id, id, user_id, line) SELECT run_id, id, user_id, line FROM unnest("
    "string_to_array(:run_ids, chr(10)), CAST(string_to_array(:ids, chr(10)) AS integer[]), "
    "string_to_array(:user_ids, chr(10)), string_to_array(:lines, chr(10))"
    ") WITH ORDINALITY AS new (run_id, id, user_id, line, turn) ORDER BY turn ON CONFLICT DO NOTHING"
)

_AFTER = Query(
    select(events.c.line)
    .where(events.c.run_id == bindparam("of_run"), events.c.id > bindparam("cursor"))
    .order_by(events.c.id)
    .limit(bindparam("most", type_=Integer))
)
_LAST = select(func.max(events.c.id).label("id")).where(events.c.run_id == bindparam("of_run"))
LAST_EVENT = Query(_LAST)

_PRESENT_ON_POSTGRES = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS tx, 0 AS seq")
_PRESENT_ON_SQLITE = text("SELECT 0 AS tx, coalesce(max(seq), 0) AS seq FROM sqlite_sequence WHERE name = 'events'")
_THIS = tuple_(events.c.tx, events.c.seq)
_OF_USER = (
    select(events.c.tx, events.c.seq, events.c.line)
    .where(
        events.c.user_id == bindparam("of_user"),
        tuple_(bindparam("after_tx"), bindparam("after_seq")) < _THIS,
        tuple_(bindparam("until_tx"), bindparam("until_seq")) >= _THIS,
    )
    .order_by(events.c.tx, events.c.seq)
    .limit(bindparam("most", type_=Integer))
)


def add_events(connection: Connection, new: Iterable[Event], owners: Mapping[str, str]) -> None:
    """`owners`: the user of each run, by its id."""
    added = list(new)
    if not added:
        return
    if connection.dialect.name == "postgresql":
        columns = {
            "run_ids": "\n".join([event.run_id for event in added]),
            "ids": "\n".join([str(event.id) for event in added]),
            "user_ids": "\n".join([owners[event.run_id] for event in added]),
            "lines": "\n".join([event.line for event in added]),
        }
        connection.execute(_ADD_ON_POSTGRES, columns)
        return
    rows = [
        {"run_id": event.run_id, "id": event.id, "user_id": owners[event.run_id], "line": event.line} for event in added
    ]
    connection.execute(_ADD, rows)


def last_event_id(connection: Connection, run_id: str) -> int:
    """The number of the run's last event; 0 when there is none."""
    found: int | None = connection.scalar(_LAST, {"of_run": run_id})
    return found or 0


class Events:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, run_id: str, cursor: int, limit: int) -> list[Event]:
        """Up to `limit` events with an id over `cursor`, in order."""
        values = {"of_run": run_id, "cursor": cursor, "most": limit}
        return [decode(row["line"]) for row in await self._database.select(_AFTER, values)]

    async def of_user(self, user_id: str, after: Place, limit: int) -> UserEvents:
        """Up to `limit` events of all the user's runs with a place over `after`, in order."""

        def read(connection: Connection) -> UserEvents:
            present = _present(connection)
            values = {
                "of_user": user_id,
                "after_tx": after.tx,
                "after_seq": after.seq,
                "until_tx": present.tx,
                "until_seq": present.seq,
                "most": limit,
            }
            found = [(Place(row.tx, row.seq), decode(row.line)) for row in connection.execute(_OF_USER, values)]
            return UserEvents(found, found[-1][0] if len(found) == limit else max(after, present))

        return await self._database.read(read)

    async def present(self) -> Place:
        """The place up to which all events can be seen by now. All later ones get higher places."""
        return await self._database.read(_present)

    async def last_ids(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The number of the last event of each run that has events."""
        query = (
            select(events.c.run_id, func.max(events.c.id).label("last_id"))
            .where(events.c.run_id.in_(run_ids))
            .group_by("run_id")
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.run_id: row.last_id for row in rows}

    async def last_id(self, run_id: str) -> int:
        return await self._database.read(lambda connection: last_event_id(connection, run_id))


def _present(connection: Connection) -> Place:
    on_postgres = connection.dialect.name == "postgresql"
    row = connection.execute(_PRESENT_ON_POSTGRES if on_postgres else _PRESENT_ON_SQLITE).one()
    return Place(row.tx, row.seq)
