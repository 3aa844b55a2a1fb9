"""Runs that wait for an event of their user.

Nothing is lost between the look for the event and the wait for it: whoever stores an event and whoever begins to wait
both lock the user's row (`store.bus.events`). So a wait either finds the event that is there, or is there itself when
the event is stored, and is marked in the same transaction as that.

To wake the run is another step, which may be repeated: `matched` gives the waits that have ended, each to one
caller at a time, `wake` queues the run again. A caller that is killed between the two loses nothing: what it claimed is
due again when its lease is over. A run that has not stopped yet is looked at again later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, text, update

from backplane.domain.bus import CloudEvent, EventWait, StoredEvent, WaitStatus, is_awaited, patterns_of
from backplane.domain.events import Event
from backplane.domain.runs import Run, RunStatus
from backplane.store.bus.log import lock_log, of_type
from backplane.store.bus.tables import bus_events, event_waits
from backplane.store.clock import database_now
from backplane.store.database import Database
from backplane.store.runs import RUN_COLUMNS, change_run, run_of
from backplane.store.tables import runs

SCANNED_AT_ONCE = 500

_OPEN = event_waits.c.status == text("'open'")  # as the indexes have it
_ONE = select(event_waits).where(event_waits.c.run_id == bindparam("of_run"), event_waits.c.key == bindparam("of_key"))
_LOCKED_RUN = select(*RUN_COLUMNS).where(runs.c.id == bindparam("of_run")).with_for_update()
_SETTLE = update(event_waits).where(event_waits.c.id == bindparam("of_wait")).values(wake_at=None)
_MARK = update(event_waits).where(event_waits.c.id == bindparam("of_wait"), _OPEN)


@dataclass(frozen=True, slots=True)
class Woken:
    """A run that was queued again, and the events of its log that say so. `run` is None where nothing was to be done:
    the run is over, or somebody else woke it."""

    run: Run | None
    events: Sequence[Event] = ()


def mark_matched(connection: Connection, user_id: str, added: Sequence[tuple[int, CloudEvent]]) -> list[EventWait]:
    """Mark the waits that these new events end, each by the first that it waited for, and return them. The caller has
    locked the user's row."""
    patterns = {pattern for _, event in added for pattern in patterns_of(event.type)}
    query = select(event_waits).where(event_waits.c.user_id == user_id, _OPEN, event_waits.c.pattern.in_(patterns))
    rows = connection.execute(query).all()
    now = database_now(connection) if rows else None
    ended: list[EventWait] = []
    for row in rows:
        wait = wait_of(row)
        for cursor, event in added:
            if cursor > wait.after and is_awaited(wait, event):
                values = {"status": WaitStatus.MATCHED.value, "event": event.line, "wake_at": now}
                # None where its time was up a moment ago.
                if connection.execute(_MARK, {"of_wait": wait.id, **values}).rowcount:
                    ended.append(replace(wait, status=WaitStatus.MATCHED, event=event.line))
                break
    return ended


def add_wait(connection: Connection, wait: EventWait) -> EventWait:
    """Begin to wait, or end it at once by an event that is there. Added again, by its run and key, it is as it was. The
    run's row is locked already, or will not be."""
    lock_log(connection, wait.user_id)
    there = connection.execute(_ONE, {"of_run": wait.run_id, "of_key": wait.key}).one_or_none()
    if there is not None:
        return wait_of(there)
    event = _first_stored(connection, wait)
    made = wait if event is None else replace(wait, status=WaitStatus.MATCHED, event=event.line)
    connection.execute(
        insert(event_waits),
        {
            "id": made.id,
            "run_id": made.run_id,
            "user_id": made.user_id,
            "key": made.key,
            "pattern": made.pattern,
            "wanted": made.match,
            "after_cursor": made.after,
            "timeout_at": made.timeout_at,
            "created_at": datetime.now(UTC),
            "status": made.status.value,
            "event": made.event,
        },
    )
    return made


def _first_stored(connection: Connection, wait: EventWait) -> StoredEvent | None:
    """The first event behind the wait's cursor that it waits for."""
    after = wait.after
    while True:
        query = (
            select(bus_events.c.cursor, bus_events.c.type, bus_events.c.line)
            .where(bus_events.c.user_id == wait.user_id, bus_events.c.cursor > after, of_type(wait.pattern))
            .order_by(bus_events.c.cursor)
            .limit(SCANNED_AT_ONCE)
        )
        found = [StoredEvent(row.cursor, row.type, row.line) for row in connection.execute(query)]
        for event in found:
            if is_awaited(wait, event):
                return event
        if len(found) < SCANNED_AT_ONCE:
            return None
        after = found[-1].cursor


class EventWaits:
    """What a run waits for, from its beginning (`open`) to the moment at which the run goes on (`wake`)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, wait: EventWait) -> EventWait:
        """Begin to wait. The wait that is returned is matched already where the event is there. A run that stops for
        it writes the wait with its state instead: `RunTransaction.wait_for_event`."""
        return await self._database.write(lambda connection: add_wait(connection, wait))

    async def of_run(self, run_id: str) -> list[EventWait]:
        """All waits of a run, in the order in which they began. For workers."""
        query = select(event_waits).where(event_waits.c.run_id == run_id)
        query = query.order_by(event_waits.c.created_at, event_waits.c.id)
        return [wait_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def time_out(self, limit: int) -> int:
        """End up to `limit` waits whose time is up, by the database's clock. Returns how many."""

        def look(connection: Connection) -> bool:
            due = select(event_waits.c.id).where(_OPEN, event_waits.c.timeout_at <= database_now(connection))
            return connection.scalar(due.limit(1)) is not None

        def write(connection: Connection) -> int:
            now = database_now(connection)
            due = select(event_waits.c.id).where(_OPEN, event_waits.c.timeout_at <= now)
            ids = connection.scalars(
                due.order_by(event_waits.c.timeout_at).limit(limit).with_for_update(skip_locked=True)
            ).all()
            values = {"status": WaitStatus.TIMED_OUT.value, "wake_at": now}
            statement = update(event_waits).where(event_waits.c.id.in_(ids), _OPEN).values(values)
            return connection.execute(statement).rowcount if ids else 0

        return await self._database.write(write) if await self._database.read(look) else 0

    async def matched(self, limit: int, *, lease_seconds: float) -> list[EventWait]:
        """Up to `limit` waits that have ended, by an event or by time, and whose run is not woken yet. Nobody else gets
        them before the lease is over."""

        def look(connection: Connection) -> bool:
            due = select(event_waits.c.id).where(event_waits.c.wake_at <= database_now(connection))
            return connection.scalar(due.limit(1)) is not None

        def write(connection: Connection) -> list[EventWait]:
            now = database_now(connection)
            due = select(event_waits.c.id).where(event_waits.c.wake_at <= now).order_by(event_waits.c.wake_at)
            ids = connection.scalars(due.limit(limit).with_for_update(skip_locked=True)).all()
            if not ids:
                return []
            leased = (
                update(event_waits)
                .where(event_waits.c.id.in_(ids))
                .values(wake_at=now + timedelta(seconds=lease_seconds))
                .returning(event_waits)
            )
            return [wait_of(row) for row in connection.execute(leased)]

        return await self._database.write(write) if await self._database.read(look) else []

    async def wake(self, wait: EventWait) -> Woken:
        """Queue the run again that waits for this. A run that is running has not stopped yet: it stays as it is, and
        `matched` gives the wait again when the lease is over, until `settle`."""

        def write(connection: Connection) -> Woken:
            row = connection.execute(_LOCKED_RUN, {"of_run": wait.run_id}).one_or_none()
            if row is None:
                return Woken(None)
            run = run_of(row)
            if run.status is RunStatus.RUNNING:
                return Woken(None)
            connection.execute(_SETTLE, {"of_wait": wait.id})
            if run.status is not RunStatus.WAITING or run.in_mailbox:
                return Woken(None)
            now = datetime.now(UTC)
            # The attempt's clock begins anew: the time in which the run waited does not count as the run's.
            values = {"status": RunStatus.QUEUED, "queued_at": now, "started_at": None, "error": None}
            return Woken(*change_run(connection, run, values, now))

        return await self._database.write(write)

    async def settle(self, wait_ids: Sequence[str]) -> None:
        """The runs have what they waited for: nobody need wake them."""
        statement = update(event_waits).where(event_waits.c.id.in_(wait_ids)).values(wake_at=None)
        await self._database.write(lambda connection: connection.execute(statement))


def wait_of(row: Row[Any]) -> EventWait:
    return EventWait(
        row.id,
        row.run_id,
        row.user_id,
        row.key,
        row.pattern,
        row.wanted,
        row.after_cursor,
        row.timeout_at,
        WaitStatus(row.status),
        row.event,
    )
