"""Finds what is past its time, and removes it in short transactions.

A process that removes something of a run first takes a lease on its row, so any number of controllers may do so at
once. A run whose files are to go is marked in the same moment (`files_expired_at`) and cannot be started or retried
from then on. The files go before the row: after a crash in between, the row still says where they lie.

The newest event of a run, its `end`, stays until the row goes, so that a watcher of the run still gets an end.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, exists, func, or_, select, update

from backplane.domain.retention import EventSpan, Expired, LeasedRun
from backplane.domain.runs import FINAL, RunStatus
from backplane.errors import Conflict, NotFound
from backplane.store.database import Database
from backplane.store.tables import dead_letters, events, runs

_OVER = runs.c.status.in_([status.value for status in FINAL])
_UNSTARTED = runs.c.status == RunStatus.CREATED.value
_SINCE = dict.fromkeys(Expired, runs.c.finished_at) | {Expired.UNSTARTED_RUN: runs.c.created_at}
_MEANT: dict[Expired, ColumnElement[bool]] = {
    Expired.RUN: _OVER,
    Expired.UNSTARTED_RUN: _UNSTARTED,
    Expired.FILES: _OVER & runs.c.files_removed_at.is_(None),
    Expired.EVENTS: _OVER & runs.c.events_trimmed_at.is_(None),
}


class Retention:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def lease(self, expired: Expired, before: datetime, limit: int, *, seconds: float) -> list[LeasedRun]:
        """Lease up to `limit` runs that were over (or created) before then, oldest first, for so many seconds."""
        now = datetime.now(UTC)
        due = (
            select(runs.c.id)
            .where(_SINCE[expired] < before, _MEANT[expired])
            .where(or_(runs.c.retention_lease.is_(None), runs.c.retention_lease < now))
            .where(~exists().where(dead_letters.c.run_id == runs.c.id))
            .order_by(_SINCE[expired])
            .limit(limit)
            .with_for_update(skip_locked=True, of=runs)
        )
        values: dict[str, object] = {"retention_lease": now + timedelta(seconds=seconds)}
        if expired is not Expired.EVENTS:
            values["files_expired_at"] = func.coalesce(runs.c.files_expired_at, now)

        def write(connection: Connection) -> list[LeasedRun]:
            ids = connection.scalars(due).all()
            if not ids:
                return []
            leasing = update(runs).where(runs.c.id.in_(ids)).values(values).returning(runs.c.id, runs.c.user_id)
            return [LeasedRun(row.id, row.user_id) for row in connection.execute(leasing)]

        return await self._database.write(write)

    async def lease_one(self, user_id: str, run_id: str, *, seconds: float) -> datetime:
        """Lease a run of this user that is over, to be deleted now, for so many seconds. Returns when the lease ends.
        Raises NotFound, and Conflict when the run is not over, or is being deleted already."""
        now = datetime.now(UTC)
        ends = now + timedelta(seconds=seconds)

        def write(connection: Connection) -> datetime:
            query = select(runs.c.status, runs.c.retention_lease).where(runs.c.id == run_id, runs.c.user_id == user_id)
            row = connection.execute(query.with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"there is no run {run_id} of yours; GET /agent/runs lists those there are")
            if RunStatus(row.status) not in FINAL:
                raise Conflict(f"run {run_id} is {row.status} and cannot be deleted; cancel it first")
            if row.retention_lease is not None and row.retention_lease > now:
                raise Conflict(f"run {run_id} is being deleted already; look again in some minutes")
            values = {
                "retention_lease": ends,
                "files_expired_at": func.coalesce(runs.c.files_expired_at, now),
            }
            connection.execute(update(runs).where(runs.c.id == run_id).values(values))
            return ends

        return await self._database.write(write)

    async def give_up_lease(self, run_id: str, ends: datetime) -> None:
        """Give a lease up after a failure, so that the deletion may be tried again at once. A lease that another
        process has taken meanwhile stays."""
        own = (runs.c.id == run_id) & (runs.c.retention_lease == ends)
        statement = update(runs).where(own).values(retention_lease=None)
        await self._database.write(lambda connection: connection.execute(statement))

    async def spans(self, run_ids: Sequence[str]) -> list[EventSpan]:
        """The events of these runs but for the newest of each; runs without any are left out."""
        of_run = events.c.run_id == runs.c.id
        query = select(
            runs.c.id,
            select(func.min(events.c.id)).where(of_run).scalar_subquery().label("first"),
            select(func.max(events.c.id)).where(of_run).scalar_subquery().label("last"),
        ).where(runs.c.id.in_(run_ids))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [EventSpan(row.id, row.first, row.last) for row in rows if row.first != row.last]

    async def delete_events(self, spans: Iterable[EventSpan]) -> int:
        """Delete these events in one transaction. Returns how many there were."""

        def write(connection: Connection) -> int:
            deleted = 0
            for span in spans:
                within = (events.c.run_id == span.run_id) & (events.c.id >= span.first) & (events.c.id < span.last)
                deleted += connection.execute(delete(events).where(within)).rowcount
            return deleted

        return await self._database.write(write)

    async def delete_runs(self, run_ids: Sequence[str]) -> int:
        """Delete the rows of leased runs, with all that belongs to them. Returns how many there were."""
        leased = runs.c.id.in_(run_ids) & runs.c.files_expired_at.is_not(None) & (_OVER | _UNSTARTED)
        statement = delete(runs).where(leased)
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def files_removed(self, run_ids: Sequence[str]) -> None:
        """End the leases of these runs, whose files are removed."""
        await self._mark(run_ids, {"files_removed_at": datetime.now(UTC)}, _OVER)

    async def events_trimmed(self, run_ids: Sequence[str], before: datetime) -> None:
        """End the leases of these runs, whose events are removed. A run that was retried meanwhile is looked at
        again."""
        await self._mark(run_ids, {"events_trimmed_at": datetime.now(UTC)}, _OVER & (runs.c.finished_at < before))

    async def _mark(self, run_ids: Sequence[str], values: dict[str, datetime], meant: ColumnElement[bool]) -> None:
        statement = update(runs).where(runs.c.id.in_(run_ids), meant).values({**values, "retention_lease": None})
        await self._database.write(lambda connection: connection.execute(statement))
