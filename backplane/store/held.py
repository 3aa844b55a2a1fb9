"""What a worker writes about a run while it holds it.

Each claim of a run has a generation. `take` enters it in the row, and from then on every write of an older generation
is refused: each transaction here first reads the row's generation and keeps it from changing until it has committed.
The row, the journal and the events of a run are written together, so that no crash can part them.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from backplane.errors import Superseded
from backplane.events import Event
from backplane.plans import Plan
from backplane.runs import FINAL, Run, RunError, RunStatus
from backplane.store.database import Database
from backplane.store.events import add_events, last_event_id
from backplane.store.journal import StepStatus
from backplane.store.runs import RUN_COLUMNS, run_of
from backplane.store.tables import runs, steps


@dataclass(frozen=True, slots=True)
class Rights:
    """Of the runs that were asked about: those that another worker took or that are over, and those to be cancelled."""

    superseded: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True)
class Taken:
    """A run as it was when it was taken. `last_event_id`: the last in the database."""

    run: Run
    last_event_id: int
    from_lost_worker: bool


class HeldRuns:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, run_id: str, generation: int) -> Taken | None:
        """Enter a claim in the row: it is running now, in this generation. None when it may not run (any more)."""
        now = datetime.now(UTC)
        async with self._database.write() as connection:
            query = select(*RUN_COLUMNS).where(runs.c.id == run_id).with_for_update()
            row = (await connection.execute(query)).one_or_none()
            if row is None or row.generation >= generation or row.status not in ("queued", "running"):
                return None
            started = row.started_at or now
            values = {"status": "running", "generation": generation, "started_at": started}
            await connection.execute(update(runs).where(runs.c.id == run_id).values(values))
            run = replace(run_of(row), status=RunStatus.RUNNING, generation=generation, started_at=started)
            last_id = await last_event_id(connection, run_id)
        return Taken(run, last_id, from_lost_worker=row.status == "running")

    @asynccontextmanager
    async def hold(self, run_id: str, generation: int) -> AsyncIterator["HeldRun"]:
        """A transaction on a run that is held in this generation. Raises Superseded when it no longer is."""
        async with self._database.write() as connection:
            held = await self._still_held(connection, {run_id: generation})
            if run_id not in held:
                raise Superseded(f"run {run_id} is no longer held in generation {generation}")
            yield HeldRun(connection, run_id)

    async def add_events(self, batches: Mapping[tuple[str, int], Sequence[Event]]) -> frozenset[str]:
        """Store events of several runs, each by (run id, generation). Answers the runs whose generation was refused."""
        async with self._database.write() as connection:
            held = await self._still_held(connection, dict(batches.keys()))
            accepted = [event for (run_id, _), batch in batches.items() if run_id in held for event in batch]
            await add_events(connection, accepted)
        return frozenset(run_id for run_id, _ in batches) - held

    async def rights(self, held: Mapping[str, int]) -> Rights:
        """What became of runs that are held in these generations."""
        query = select(runs.c.id, runs.c.generation, runs.c.status, runs.c.cancel_requested_at).where(
            runs.c.id.in_(held)
        )
        async with self._database.read() as connection:
            rows = {row.id: row for row in await connection.execute(query)}
        superseded = {
            run_id
            for run_id, generation in held.items()
            if run_id not in rows or rows[run_id].generation > generation or rows[run_id].status in FINAL
        }
        return Rights(
            frozenset(superseded),
            frozenset(run_id for run_id, row in rows.items() if row.cancel_requested_at and run_id not in superseded),
        )

    async def _still_held(self, connection: AsyncConnection, held: Mapping[str, int]) -> frozenset[str]:
        query = (
            select(runs.c.id, runs.c.generation)
            .where(runs.c.id.in_(held), runs.c.status == RunStatus.RUNNING.value)
            .order_by(runs.c.id)
            .with_for_update(read=True)
        )
        rows = await connection.execute(query)
        return frozenset(row.id for row in rows if row.generation == held[row.id])


class HeldRun:
    """One guarded transaction. What is written here is committed together, or not at all."""

    def __init__(self, connection: AsyncConnection, run_id: str) -> None:
        self._connection = connection
        self._run_id = run_id

    async def add_events(self, events: Iterable[Event]) -> None:
        await add_events(self._connection, events)

    async def save_plan(self, plan: Plan) -> None:
        """Keep the plan, and a pending journal entry for each step."""
        await self._connection.execute(
            update(runs).where(runs.c.id == self._run_id).values(plan=plan.model_dump(mode="json"))
        )
        rows = [
            {
                "run_id": self._run_id,
                "step_id": step.id,
                "position": position,
                "title": step.title,
                "tool": step.tool,
                "status": StepStatus.PENDING.value,
                "tries": 0,
            }
            for position, step in enumerate(plan.ordered())
        ]
        await self._connection.execute(insert(steps), rows)

    async def begin_step(self, step_id: str, tries: int) -> None:
        await self._step(step_id, status=StepStatus.STARTED.value, tries=tries, started_at=datetime.now(UTC))

    async def step_is_changing(self, step_id: str) -> None:
        await self._step(step_id, status=StepStatus.CHANGING.value)

    async def end_step(self, step_id: str, status: StepStatus, result: Mapping[str, Any] | None = None) -> None:
        await self._step(step_id, status=status.value, result=result, finished_at=datetime.now(UTC))

    async def skip_pending_steps(self) -> None:
        await self._connection.execute(
            update(steps)
            .where(steps.c.run_id == self._run_id, steps.c.status == StepStatus.PENDING.value)
            .values(status=StepStatus.SKIPPED.value)
        )

    async def reopen_steps(self) -> None:
        """Before another attempt: whatever was not completed is to be done again."""
        await self._connection.execute(
            update(steps)
            .where(steps.c.run_id == self._run_id, steps.c.status != StepStatus.COMPLETED.value)
            .values(status=StepStatus.PENDING.value)
        )

    async def finish(self, status: RunStatus, error: RunError | None) -> None:
        await self._run(status=status.value, finished_at=datetime.now(UTC), error=error.as_dict() if error else None)

    async def wait_for_person(self, error: RunError) -> None:
        await self._run(status=RunStatus.WAITING.value, error=error.as_dict())

    async def queue_again(self, *, attempt: int | None, error: RunError | None) -> None:
        """Give the run back: for its next attempt, whose clock begins anew, or (None) in the middle of this one."""
        values: dict[str, Any] = {"status": RunStatus.QUEUED.value, "error": error.as_dict() if error else None}
        if attempt is not None:
            values |= {"attempt": attempt, "started_at": None}
        await self._run(queued_at=datetime.now(UTC), **values)

    async def _run(self, **values: Any) -> None:
        await self._connection.execute(update(runs).where(runs.c.id == self._run_id).values(**values))

    async def _step(self, step_id: str, **values: Any) -> None:
        await self._connection.execute(
            update(steps).where(steps.c.run_id == self._run_id, steps.c.step_id == step_id).values(**values)
        )
