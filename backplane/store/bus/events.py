"""The events of the bus, and their order.

Each user has a row in `bus_logs` with the number of the user's last event. Whoever stores events first locks that row
and keeps it until the commit. So numbers become visible in their order and none is passed over: a reader that goes on
behind the last number it has seen misses nothing. Users do not wait for one another, only a user's own writers do.

An event of the same source and id is stored once. A run that waits for an event is marked here, in the transaction that
stores the event (`store.bus.waits`).

What runs come to (`run.completed`, …) is noted in the transaction that ends the run (`store.bus.notices`), and becomes
an event here.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, or_, select, update

from backplane.domain.bus import (
    EVENT_MAX_BYTES,
    Announcement,
    BusRoom,
    CloudEvent,
    EventFilter,
    Published,
    ReadEvents,
    RunNotice,
    StoredEvent,
    StoredEvents,
    run_event,
)
from backplane.domain.sizes import MIB
from backplane.errors import StorageExceeded
from backplane.store.bus.log import last_cursor, lock_log, of_type
from backplane.store.bus.tables import bus_events, bus_logs, run_notices
from backplane.store.bus.waits import mark_matched
from backplane.store.database import Database
from backplane.store.tables import runs

WINDOW = 5000
"""Events that one page looks at, at most: a filter that nothing matches makes a page empty, not slow."""
PAGE_BYTES = 4 * MIB
"""Of the events of a page. One alone may have more."""
UNLIMITED = BusRoom()

_NOTICED = select(runs.c.id, runs.c.status, runs.c.attempt, runs.c.error, runs.c.metadata)
_LOG = update(bus_logs).where(bus_logs.c.user_id == bindparam("of_user"))


def add_bus_events(
    connection: Connection, user_id: str, new: Sequence[CloudEvent], room: BusRoom = UNLIMITED
) -> StoredEvents:
    """Store those that are new, in order, and mark the runs that wait for them. Raises StorageExceeded."""
    log = lock_log(connection, user_id)
    cursors = _stored_before(connection, user_id, new)
    cursor, added, published = log.last_cursor, list[tuple[int, CloudEvent]](), list[Published]()
    for event in new:
        is_new = event.digest not in cursors
        if is_new:
            cursor += 1
            cursors[event.digest] = cursor
            added.append((cursor, event))
        published.append(Published(event.id, event.source, cursors[event.digest], is_new))
    if not added:
        return StoredEvents(published, [])
    size = sum(event.size for _, event in added)
    _check_room(room, log.events + len(added), log.bytes + size)
    now = datetime.now(UTC)
    connection.execute(
        insert(bus_events),
        [
            {
                "user_id": user_id,
                "cursor": at,
                "digest": event.digest,
                "type": event.type,
                "source": event.source,
                "subject": event.subject,
                "line": event.line,
                "size": event.size,
                "stored_at": now,
            }
            for at, event in added
        ],
    )
    values = {"last_cursor": cursor, "events": log.events + len(added), "bytes": log.bytes + size}
    connection.execute(_LOG, {"of_user": user_id, **values})
    return StoredEvents(published, mark_matched(connection, user_id, added))


def _stored_before(connection: Connection, user_id: str, new: Sequence[CloudEvent]) -> dict[str, int]:
    """The places of those that are there already, by digest."""
    query = select(bus_events.c.digest, bus_events.c.cursor).where(
        bus_events.c.user_id == user_id, bus_events.c.digest.in_({event.digest for event in new})
    )
    return {row.digest: row.cursor for row in connection.execute(query)}


def _check_room(room: BusRoom, events: int, size: int) -> None:
    if room.events and events > room.events:
        raise StorageExceeded(
            f"{room.events:,} events of yours are kept already, and no more may be (USER_MAX_BUS_EVENTS); old ones go "
            "by themselves (RETENTION_BUS_DAYS)"
        )
    if room.bytes and size > room.bytes:
        raise StorageExceeded(
            f"your events would have {size:,} bytes, and {room.bytes:,} may be kept (USER_MAX_BUS_BYTES); old ones go "
            "by themselves (RETENTION_BUS_DAYS)"
        )


class EventBus:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(self, user_id: str, new: Sequence[CloudEvent], room: BusRoom = UNLIMITED) -> StoredEvents:
        """Store all of these, or none. An event that is there already stays as it is. Raises StorageExceeded."""
        return await self._database.write(lambda connection: add_bus_events(connection, user_id, new, room))

    async def page(self, user_id: str, after: int, limit: int, wanted: EventFilter) -> ReadEvents:
        """Up to `limit` of the user's events behind `after` that are wanted, in order: as many as have PAGE_BYTES, and
        one at least where there is one."""

        def read(connection: Connection) -> ReadEvents:
            last = last_cursor(connection, user_id)
            if after > last:
                return ReadEvents([], last, more=False, missing=True)
            first = select(func.min(bus_events.c.cursor)).where(bus_events.c.user_id == user_id)
            begin = max(after, (connection.scalar(first) or last + 1) - 1)
            end = min(last, begin + WINDOW)
            # Each statement sees what is committed by then, and retention may remove events between two of them: which
            # is the first of those that are left has to come with the events themselves.
            left = first.scalar_subquery().label("left")
            which = (bus_events.c.user_id == user_id, bus_events.c.cursor > begin, *_conditions(wanted))
            end = _end_of_page(connection, which, end, limit)
            query = (
                select(bus_events.c.cursor, bus_events.c.type, bus_events.c.line, left)
                .where(*which, bus_events.c.cursor <= end)
                .order_by(bus_events.c.cursor)
                .limit(limit)
            )
            rows = connection.execute(query).all()
            if rows:
                begin = max(begin, rows[0].left - 1)
            elif end > begin:
                begin = max(begin, (connection.scalar(first) or last + 1) - 1)
            found = [StoredEvent(row.cursor, row.type, row.line) for row in rows]
            until = found[-1].cursor if len(found) == limit else end
            return ReadEvents(found, until, more=until < last, missing=bool(after) and begin > after)

        return await self._database.read(read)

    async def present(self, user_id: str) -> int:
        """The place of the user's last event; 0 when there was none."""
        return await self._database.read(lambda connection: last_cursor(connection, user_id))

    async def publish_notices(self, limit: int) -> list[Announcement]:
        """Make events of up to `limit` notices of runs, oldest first. Any number of controllers may do so at once."""
        pending = select(run_notices.c.number).limit(1)

        def look(connection: Connection) -> bool:
            return connection.scalar(pending) is not None

        # Mostly there is nothing, and a look locks nothing.
        if not await self._database.read(look):
            return []
        return await self._database.write(lambda connection: _publish_notices(connection, limit))

    async def remove_before(self, before: datetime, limit: int) -> int:
        """Remove up to `limit` events that were stored before then. Returns how many there were."""

        def write(connection: Connection) -> int:
            due = (
                select(bus_events.c.user_id, bus_events.c.cursor)
                .where(bus_events.c.stored_at < before)
                .order_by(bus_events.c.stored_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            of_user = defaultdict[str, list[int]](list)
            for row in connection.execute(due):
                of_user[row.user_id].append(row.cursor)
            removed = 0
            # Users always in the same order, so that two that lock several never wait for one another.
            for user_id, cursors in sorted(of_user.items()):
                log = lock_log(connection, user_id)
                gone = connection.scalars(
                    delete(bus_events)
                    .where(bus_events.c.user_id == user_id, bus_events.c.cursor.in_(cursors))
                    .returning(bus_events.c.size)
                ).all()
                values = {"events": max(0, log.events - len(gone)), "bytes": max(0, log.bytes - sum(gone))}
                connection.execute(_LOG, {"of_user": user_id, **values})
                removed += len(gone)
            return removed

        return await self._database.write(write)


def _end_of_page(connection: Connection, which: Sequence[ColumnElement[bool]], end: int, limit: int) -> int:
    """The last place up to `end` whose events fit into one page. Sizes alone are read: lines may be large."""
    if limit * EVENT_MAX_BYTES <= PAGE_BYTES:
        return end
    sizes = select(bus_events.c.cursor, bus_events.c.size).where(*which, bus_events.c.cursor <= end)
    rows = connection.execute(sizes.order_by(bus_events.c.cursor).limit(limit)).all()
    fitting = max(sum(total <= PAGE_BYTES for total in accumulate(row.size for row in rows)), 1)
    return end if fitting >= len(rows) else int(rows[fitting - 1].cursor)


def _conditions(wanted: EventFilter) -> Iterable[ColumnElement[bool]]:
    if wanted.types and "*" not in wanted.types:
        yield or_(*map(of_type, wanted.types))
    if wanted.sources:
        yield bus_events.c.source.in_(wanted.sources)
    if wanted.subjects:
        yield bus_events.c.subject.in_(wanted.subjects)


def _publish_notices(connection: Connection, limit: int) -> list[Announcement]:
    due = select(run_notices).order_by(run_notices.c.number).limit(limit).with_for_update(skip_locked=True)
    notices = connection.execute(due).all()
    if not notices:
        return []
    query = _NOTICED.where(runs.c.id.in_({notice.run_id for notice in notices}))
    found = {(row.id, row.status, row.attempt): row for row in connection.execute(query)}
    of_user = defaultdict[str, list[CloudEvent]](list)
    for row in notices:
        notice = RunNotice(row.number, row.run_id, row.status, row.attempt, row.at)
        run = found.get((notice.run_id, notice.status, notice.attempt))
        more = {"error": run.error, "metadata": run.metadata} if run is not None else {}
        of_user[row.user_id].append(run_event(notice, more))
    announced: dict[tuple[str, str], Announcement] = {}
    for user_id, new in sorted(of_user.items()):
        for event, published in zip(new, add_bus_events(connection, user_id, new).published, strict=True):
            before = announced.get((user_id, event.type))
            count = before.count + 1 if before else 1
            announced[user_id, event.type] = Announcement(user_id, event.type, published.cursor, count)
    connection.execute(delete(run_notices).where(run_notices.c.number.in_([notice.number for notice in notices])))
    return list(announced.values())
