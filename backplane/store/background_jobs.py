"""Bulk actions and exports: rows with their progress, who asked, and what came of each run.

A bulk action lists its runs when it is asked for, in the same transaction: a run that comes later is not part of it. A
process that carries a job out claims it for a while; each claim has a generation, and what is written by an older one
is refused (`Superseded`), so that two RQ workers with the same job do no harm.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, exists, func, insert, or_, select, update

from backplane.domain.background_jobs import (
    NO_ARCHIVE,
    UNFINISHED,
    BackgroundJob,
    BulkAction,
    ItemStatus,
    JobItem,
    JobKind,
    JobStatus,
    NewJob,
    RunFilter,
)
from backplane.errors import Conflict, IdempotencyKeyReused, NotFound, Superseded, TooLarge, TooManyJobs
from backplane.store.database import Database
from backplane.store.tables import background_job_items as items
from backplane.store.tables import background_jobs as jobs
from backplane.store.tables import dead_letters, runs, users

RETRY_SECONDS = 30
ITEMS_AT_ONCE = 500
"""Rows of one INSERT: SQLite takes 32,766 values in a statement."""

_OPEN = jobs.c.status.in_([status.value for status in UNFINISHED])
_LEFT = items.c.status.in_([ItemStatus.PENDING.value, ItemStatus.BEGUN.value])
_NOT_OF_JOB = {"lease_until", "idempotency_key", "idempotency_digest"}
_OF_JOB = [column for column in jobs.c if column.name not in _NOT_OF_JOB]
REMOVED_AFTER = timedelta(hours=1)
"""After an export was stopped: longer than whoever makes its archive goes on without noticing."""


class BackgroundJobs:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self, action: BulkAction, wanted: RunFilter, user_id: str | None) -> int:
        """How many runs a bulk action would have. `user_id` None: those of everybody. Raises NotFound for a run that is
        named and is not there."""

        def read(connection: Connection) -> int:
            _check_named(connection, wanted, user_id)
            found = _matching(action, wanted, user_id).subquery()
            return connection.scalar(select(func.count()).select_from(found)) or 0

        return await self._database.read(read)

    async def create_bulk(
        self,
        new: NewJob,
        action: BulkAction,
        wanted: RunFilter,
        user_id: str | None,
        *,
        most_runs: int,
        most_jobs: int,
    ) -> BackgroundJob:
        """A bulk action on the runs that the filter names now, of `user_id` or (None) of everybody; the earlier one,
        where this person has asked for the same with the same key. Raises NotFound for a run that is named and is not
        there, TooLarge, TooManyJobs when so many of this person are not over, and IdempotencyKeyReused."""

        def write(connection: Connection) -> BackgroundJob:
            if earlier := _asked_before(connection, new):
                return earlier
            _check_room(connection, new.user_id, most_jobs)
            _check_named(connection, wanted, user_id)
            found = connection.execute(_matching(action, wanted, user_id).limit(most_runs + 1)).all()
            if len(found) > most_runs:
                raise TooLarge(
                    f"filter: it names more than {most_runs} runs (BULK_MAX_RUNS); narrow it, by created_before for one"
                )
            job = _insert(connection, new, "bulk", action, wanted.as_dict(), len(found))
            for start in range(0, len(found), ITEMS_AT_ONCE):
                connection.execute(
                    insert(items),
                    [
                        {
                            "job_id": new.id,
                            "position": position,
                            "run_id": row.id,
                            "user_id": row.user_id,
                            "status": ItemStatus.PENDING.value,
                        }
                        for position, row in enumerate(found[start : start + ITEMS_AT_ONCE], start)
                    ],
                )
            return job

        return await self._database.write(write)

    async def create_export(self, new: NewJob, run_id: str, *, most_jobs: int) -> BackgroundJob:
        """The earlier one as in `create_bulk`. Raises NotFound, Conflict (the run is past its time), TooManyJobs, and
        IdempotencyKeyReused."""

        def write(connection: Connection) -> BackgroundJob:
            if earlier := _asked_before(connection, new):
                return earlier
            _check_room(connection, new.user_id, most_jobs)
            query = select(runs.c.files_expired_at).where(runs.c.id == run_id, runs.c.user_id == new.user_id)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise _no_run(run_id)
            if row.files_expired_at is not None:
                raise Conflict(f"run {run_id} is past its time and its files are gone; it cannot be exported")
            return _insert(connection, new, "export", "export", {"run_id": run_id}, 0)

        return await self._database.write(write)

    async def get(self, user_id: str, job_id: str, kind: JobKind) -> BackgroundJob:
        """Raises NotFound, also for what another person has asked for."""
        return await self._database.read(lambda connection: _found(connection, user_id, job_id, kind))

    async def page(
        self, user_id: str, kind: JobKind, *, before: str | None = None, limit: int = 50
    ) -> list[BackgroundJob]:
        """What a person has asked for, newest first. `before`: the id of the last one of the page before."""
        query = (
            select(*_OF_JOB)
            .where(jobs.c.user_id == user_id, jobs.c.kind == kind)
            .order_by(jobs.c.id.desc())
            .limit(limit)
        )
        if before:
            query = query.where(jobs.c.id < before)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_job_of(row._mapping) for row in rows]

    async def items(
        self, job_id: str, *, status: ItemStatus | None = None, after: int = -1, limit: int = 50
    ) -> list[JobItem]:
        """The runs of a bulk action by position. `after`: the position of the last one of the page before."""
        query = select(items).where(items.c.job_id == job_id, items.c.position > after)
        if status is not None:
            query = query.where(items.c.status == status.value)
        query = query.order_by(items.c.position).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_item_of(row) for row in rows]

    async def stop(self, user_id: str, job_id: str) -> BackgroundJob:
        """Stop a bulk action: what is not done yet stays undone. One that is over is returned as it is. Raises
        NotFound."""

        def write(connection: Connection) -> BackgroundJob:
            this = _this(user_id, job_id, "bulk")
            values = {"status": JobStatus.STOPPED.value, "finished_at": datetime.now(UTC), "lease_until": None}
            connection.execute(update(jobs).where(*this, _OPEN).values(values))
            return _found(connection, user_id, job_id, "bulk")

        return await self._database.write(write)

    async def stop_export(self, user_id: str, job_id: str) -> BackgroundJob:
        """An archive that is there can be fetched no more, and is removed soon; one that is not made yet is not made.
        Raises NotFound."""
        now = datetime.now(UTC)

        def write(connection: Connection) -> BackgroundJob:
            this = _this(user_id, job_id, "export")
            stopped = {
                "status": JobStatus.STOPPED.value,
                "finished_at": now,
                "lease_until": None,
                "result": NO_ARCHIVE,
                "expires_at": now + REMOVED_AFTER,
            }
            made = (jobs.c.status == JobStatus.COMPLETED.value, jobs.c.expires_at > now)
            connection.execute(update(jobs).where(*this, *made).values(expires_at=now))
            connection.execute(update(jobs).where(*this, _OPEN).values(stopped))
            return _found(connection, user_id, job_id, "export")

        return await self._database.write(write)

    # --- for whoever carries them out ---

    async def due(self, limit: int, *, age_seconds: float = 0.0) -> list[tuple[str, int]]:
        """Ids and generations of jobs that are not over, that nobody has a claim on, and that were asked for so long
        ago: oldest first."""
        now = datetime.now(UTC)
        query = (
            select(jobs.c.id, jobs.c.generation)
            .where(_OPEN, jobs.c.created_at <= now - timedelta(seconds=age_seconds), _is_free(now))
            .order_by(jobs.c.id)
            .limit(limit)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(row.id, row.generation) for row in rows]

    async def claim(self, job_id: str, *, seconds: float) -> BackgroundJob | None:
        """Claim a job for so long. None: it is over, or another process has it, or it is to wait."""
        now = datetime.now(UTC)

        def write(connection: Connection) -> BackgroundJob | None:
            claiming = (
                update(jobs)
                .where(jobs.c.id == job_id, _OPEN, _is_free(now))
                .values(
                    status=JobStatus.RUNNING.value,
                    generation=jobs.c.generation + 1,
                    tries=jobs.c.tries + 1,
                    started_at=func.coalesce(jobs.c.started_at, now, type_=jobs.c.started_at.type),
                    lease_until=now + timedelta(seconds=seconds),
                )
                .returning(*_OF_JOB)
            )
            row = connection.execute(claiming).one_or_none()
            return _job_of(row._mapping) if row else None

        return await self._database.write(write)

    async def renew(self, job: BackgroundJob, *, seconds: float) -> None:
        """Renew the claim. Raises Superseded when the job was stopped, or another process has it by now."""
        values = {"lease_until": datetime.now(UTC) + timedelta(seconds=seconds)}
        await self._database.write(lambda connection: _change(connection, job, values))

    async def release(self, job: BackgroundJob, *, after_seconds: float = 0.0) -> None:
        """Give the claim up: any process may go on with the job after so long. Raises Superseded."""
        until = datetime.now(UTC) + timedelta(seconds=after_seconds) if after_seconds else None
        values = {"lease_until": until, "tries": 0}
        await self._database.write(lambda connection: _change(connection, job, values))

    async def left(self, job: BackgroundJob, limit: int) -> list[JobItem]:
        """The next runs of the job that are not settled yet."""
        query = select(items).where(items.c.job_id == job.id, _LEFT).order_by(items.c.position).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_item_of(row) for row in rows]

    async def begin(self, job: BackgroundJob, item: JobItem, *, seconds: float) -> None:
        """Write down that the action is about to be done, and renew the claim. Raises Superseded."""
        now = datetime.now(UTC)

        def write(connection: Connection) -> None:
            _change(connection, job, {"lease_until": now + timedelta(seconds=seconds)})
            connection.execute(
                update(items)
                .where(items.c.job_id == job.id, items.c.position == item.position)
                .values(status=ItemStatus.BEGUN.value, began_at=now)
            )

        await self._database.write(write)

    async def postpone(self, job: BackgroundJob, item: JobItem) -> None:
        """The action was not done after all: it was refused for a while. Raises Superseded."""

        def write(connection: Connection) -> None:
            _change(connection, job, {})
            connection.execute(
                update(items)
                .where(items.c.job_id == job.id, items.c.position == item.position)
                .values(status=ItemStatus.PENDING.value, began_at=None)
            )

        await self._database.write(write)

    async def settle(self, job: BackgroundJob, item: JobItem, status: ItemStatus, detail: str | None = None) -> None:
        """Write what became of a run: done or refused. Settled again, nothing changes. Raises Superseded."""
        column = jobs.c.done if status is ItemStatus.DONE else jobs.c.refused

        def write(connection: Connection) -> None:
            _change(connection, job, {})
            settled = connection.execute(
                update(items)
                .where(items.c.job_id == job.id, items.c.position == item.position, _LEFT)
                .values(status=status.value, detail=detail)
            )
            if settled.rowcount:
                counted = {column: column + 1, jobs.c.tries: 0}
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(counted))

        await self._database.write(write)

    async def progress(self, job: BackgroundJob, done: int, total: int, *, seconds: float) -> None:
        """Write the progress of an export: how many files are in the archive, of how many. Renews the claim. Raises
        Superseded."""
        values = {"done": done, "total": total, "lease_until": datetime.now(UTC) + timedelta(seconds=seconds)}
        await self._database.write(lambda connection: _change(connection, job, values))

    async def finish(
        self,
        job: BackgroundJob,
        status: JobStatus,
        *,
        error: str | None = None,
        result: dict[str, Any] | None = None,
        kept_seconds: float | None = None,
    ) -> None:
        """`kept_seconds`: how long what it made is kept from now on. Raises Superseded."""
        now = datetime.now(UTC)
        values = {
            "status": status.value,
            "finished_at": now,
            "lease_until": None,
            "error": error,
            "result": result,
            "expires_at": now + timedelta(seconds=kept_seconds) if kept_seconds is not None else None,
        }
        await self._database.write(lambda connection: _change(connection, job, values))

    # --- what is past its time ---

    async def expired(self, limit: int) -> list[BackgroundJob]:
        """Exports whose archive is to be removed."""
        query = select(*_OF_JOB).where(jobs.c.expires_at < datetime.now(UTC), jobs.c.result.is_not(None)).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_job_of(row._mapping) for row in rows]

    async def archive_removed(self, job_id: str) -> None:
        statement = update(jobs).where(jobs.c.id == job_id).values(result=None)
        await self._database.write(lambda connection: connection.execute(statement))

    async def forget(self, before: datetime, limit: int) -> int:
        """Remove jobs that were over by then and have left nothing behind; how many."""
        old = select(jobs.c.id).where(jobs.c.finished_at < before, jobs.c.result.is_(None)).limit(limit)
        statement = delete(jobs).where(jobs.c.id.in_(old))
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(jobs.c.lease_until.is_(None), jobs.c.lease_until <= now)


def _matching(action: BulkAction, wanted: RunFilter, user_id: str | None) -> Select[Any]:
    """Ids and owners of the runs, oldest first."""
    query = select(runs.c.id, runs.c.user_id).order_by(runs.c.id)
    if user_id is not None:
        query = query.where(runs.c.user_id == user_id)
    if wanted.statuses:
        query = query.where(runs.c.status.in_([status.value for status in wanted.statuses]))
    if wanted.run_ids:
        query = query.where(runs.c.id.in_(wanted.run_ids))
    if wanted.agent is not None:
        query = query.where(runs.c.agent == wanted.agent)
    if wanted.created_after is not None:
        query = query.where(runs.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(runs.c.created_at < wanted.created_before)
    if action is BulkAction.REDRIVE:
        of_run = exists().where(dead_letters.c.run_id == runs.c.id)
        query = query.where(of_run.where(dead_letters.c.reason == wanted.reason.value) if wanted.reason else of_run)
    return query


def _check_named(connection: Connection, wanted: RunFilter, user_id: str | None) -> None:
    if not wanted.run_ids:
        return
    query = select(runs.c.id).where(runs.c.id.in_(wanted.run_ids))
    if user_id is not None:
        query = query.where(runs.c.user_id == user_id)
    there = set(connection.scalars(query))
    if missing := [run_id for run_id in wanted.run_ids if run_id not in there]:
        raise _no_run(missing[0])


def _this(user_id: str, job_id: str, kind: JobKind) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.id == job_id, jobs.c.user_id == user_id, jobs.c.kind == kind)


def _found(connection: Connection, user_id: str, job_id: str, kind: JobKind) -> BackgroundJob:
    """Raises NotFound."""
    row = connection.execute(select(*_OF_JOB).where(*_this(user_id, job_id, kind))).one_or_none()
    if row is None:
        raise _no_job(job_id, kind)
    return _job_of(row._mapping)


def _asked_before(connection: Connection, new: NewJob) -> BackgroundJob | None:
    """Raises IdempotencyKeyReused. Of one user only one asks at a time from here to the end of the transaction, so that
    two cannot both be the first with a key, nor both the last that fits."""
    connection.execute(select(users.c.id).where(users.c.id == new.user_id).with_for_update())
    if new.idempotency is None:
        return None
    key, digest = new.idempotency
    query = select(*_OF_JOB, jobs.c.idempotency_digest).where(
        jobs.c.user_id == new.user_id, jobs.c.idempotency_key == key
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    values = dict(row._mapping)
    if values.pop("idempotency_digest") != digest:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {key!r} was used for another request ({row.kind} {row.id}); send a new key with a new "
            "request"
        )
    return _job_of(values)


def _check_room(connection: Connection, user_id: str, most: int) -> None:
    query = select(func.count()).select_from(jobs).where(jobs.c.user_id == user_id, _OPEN)
    if (connection.scalar(query) or 0) >= most:
        raise TooManyJobs(
            f"{most} bulk actions and exports of yours are not over, and no more may be (JOBS_USER_MAX): wait until "
            "one is over, or stop one by DELETE /agent/bulk/{bulk_id} or /agent/exports/{export_id}",
            retry_after=RETRY_SECONDS,
        )


def _insert(
    connection: Connection, new: NewJob, kind: JobKind, action: str, request: dict[str, Any], total: int
) -> BackgroundJob:
    key, digest = new.idempotency or (None, None)
    values = {
        "id": new.id,
        "kind": kind,
        "user_id": new.user_id,
        "action": str(action),
        "request": request,
        "status": JobStatus.QUEUED.value,
        "total": total,
        "done": 0,
        "refused": 0,
        "generation": 0,
        "created_at": datetime.now(UTC),
        "idempotency_key": key,
        "idempotency_digest": digest,
    }
    row = connection.execute(insert(jobs).values(values).returning(*_OF_JOB)).one()
    return _job_of(row._mapping)


def _change(connection: Connection, job: BackgroundJob, values: dict[str, Any]) -> None:
    is_ours = (jobs.c.id == job.id, jobs.c.generation == job.generation, jobs.c.status == JobStatus.RUNNING.value)
    changed = connection.execute(update(jobs).where(*is_ours).values({"generation": job.generation, **values}))
    if not changed.rowcount:
        raise Superseded(f"job {job.id} was stopped, or another process carries it out by now")


def _no_run(run_id: str) -> NotFound:
    return NotFound(f"there is no run {run_id}")


def _no_job(job_id: str, kind: JobKind) -> NotFound:
    return NotFound(f"there is no {'bulk action' if kind == 'bulk' else 'export'} {job_id}")


def _job_of(values: Mapping[Any, Any]) -> BackgroundJob:
    return BackgroundJob(**{**values, "status": JobStatus(values["status"])})


def _item_of(row: Row[Any]) -> JobItem:
    return JobItem(row.position, row.run_id, row.user_id, ItemStatus(row.status), row.began_at, row.detail)
