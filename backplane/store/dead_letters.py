"""The failures of attempts, and the runs that are left to an operator: the dead letters.

A dead letter is an entry beside its failed run. It goes when the run is retried by its user, redriven by an admin (both
in `store.runs`, with the run's transition), or purged, which leaves the run failed. The worker of a run writes here
through `store.run_transaction`, in the transaction of the run's end or of its next attempt.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select

from backplane.domain.dead_letters import (
    PROMPT_HEAD_CHARS,
    DeadCursor,
    DeadLetter,
    DeadReason,
    Failure,
    kept_traceback,
    no_dead_letter,
)
from backplane.domain.runs import RunError
from backplane.store.database import Database
from backplane.store.tables import dead_letters, failures, id_begins_with, runs, users

FAILURES_KEPT = 100
"""How many failures of a run are kept: those of so many claims. So a run that is retried for ever does not fill the
disk."""


def note_failure(
    connection: Connection,
    run_id: str,
    generation: int,
    attempt: int,
    error: RunError,
    traceback: str,
    worker_id: str | None,
) -> None:
    replaced = or_(failures.c.generation == generation, failures.c.generation <= generation - FAILURES_KEPT)
    connection.execute(delete(failures).where(failures.c.run_id == run_id, replaced))
    connection.execute(
        insert(failures).values(
            run_id=run_id,
            generation=generation,
            attempt=attempt,
            at=datetime.now(UTC),
            worker_id=worker_id,
            error=error.as_dict(),
            traceback=kept_traceback(traceback),
        )
    )


def add_dead_letter(connection: Connection, run_id: str, reason: DeadReason, crashes: int) -> None:
    remove_dead_letter(connection, run_id)
    connection.execute(
        insert(dead_letters).values(
            run_id=run_id,
            reason=reason.value,
            at=datetime.now(UTC),
            attempts=select(runs.c.attempt).where(runs.c.id == run_id).scalar_subquery(),
            crashes=crashes,
        )
    )


def remove_dead_letter(connection: Connection, run_id: str) -> bool:
    """Remove the run's dead letter. Returns whether there was one."""
    return bool(connection.execute(delete(dead_letters).where(dead_letters.c.run_id == run_id)).rowcount)


_DEAD_LETTERS = (
    select(
        dead_letters,
        runs.c.user_id,
        users.c.name.label("user_name"),
        runs.c.created_at,
        func.substr(runs.c.prompt, 1, PROMPT_HEAD_CHARS).label("prompt_head"),
        runs.c.error,
    )
    .join(runs, runs.c.id == dead_letters.c.run_id)
    .join(users, users.c.id == runs.c.user_id)
)
_NEWEST_FIRST = (dead_letters.c.at.desc(), dead_letters.c.run_id.desc())


class DeadLetters:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        *,
        reason: DeadReason | None = None,
        beginning: str | None = None,
        before: DeadCursor | None = None,
        limit: int = 50,
    ) -> list[DeadLetter]:
        """Newest first. `beginning`: only runs whose ids begin so. `before` is where the page before ended, whether or
        not that one still is a dead letter."""
        query = _DEAD_LETTERS.order_by(*_NEWEST_FIRST).limit(limit)
        if reason:
            query = query.where(dead_letters.c.reason == reason.value)
        if beginning:
            query = query.where(id_begins_with(dead_letters.c.run_id, beginning))
        if before:
            same_time = and_(dead_letters.c.at == before.at, dead_letters.c.run_id < before.run_id)
            query = query.where(or_(dead_letters.c.at < before.at, same_time))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_dead_letter(row) for row in rows]

    async def get(self, run_id: str) -> DeadLetter:
        """Raises NotFound."""
        query = _DEAD_LETTERS.where(dead_letters.c.run_id == run_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise no_dead_letter(run_id)
        return _dead_letter(row)

    async def oldest(self, limit: int, *, without_users: Collection[str] = ()) -> list[tuple[str, str]]:
        """Ids of runs that can be redriven, each with its user: a run whose files are gone cannot."""
        query = (
            select(dead_letters.c.run_id, runs.c.user_id)
            .join(runs, runs.c.id == dead_letters.c.run_id)
            .where(runs.c.files_expired_at.is_(None), runs.c.user_id.not_in(without_users))
            .order_by(dead_letters.c.at, dead_letters.c.run_id)
            .limit(limit)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(row.run_id, row.user_id) for row in rows]

    async def newest(self, limit: int = 1000) -> dict[str, float]:
        """Run ids with the time when they were dead-lettered, in seconds since the epoch."""
        query = select(dead_letters.c.run_id, dead_letters.c.at).order_by(*_NEWEST_FIRST).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.run_id: row.at.timestamp() for row in rows}

    async def count(self) -> int:
        query = select(func.count()).select_from(dead_letters)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def purge(self, run_id: str) -> None:
        """Remove the dead letter; the run stays failed. Raises NotFound."""
        if not await self._database.write(lambda connection: remove_dead_letter(connection, run_id)):
            raise no_dead_letter(run_id)

    async def purge_all(self) -> int:
        """Remove all dead letters. Returns how many there were."""
        return await self._database.write(lambda connection: connection.execute(delete(dead_letters)).rowcount)

    async def failures(self, run_id: str) -> list[Failure]:
        """The failures of the run's attempts, oldest first: those of the last FAILURES_KEPT claims, over all its
        retries."""
        query = select(failures).where(failures.c.run_id == run_id).order_by(failures.c.generation)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            Failure(row.attempt, row.generation, row.at, row.worker_id, RunError(**row.error), row.traceback)
            for row in rows
        ]


def _dead_letter(row: Row[Any]) -> DeadLetter:
    values = dict(row._mapping)
    error = RunError(**row.error) if row.error else None
    return DeadLetter(**{**values, "reason": DeadReason(row.reason), "error": error})
