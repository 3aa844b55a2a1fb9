"""The running runs: each is claimed by a worker with a generation, and only that generation may write it.

Each claim of a run has a generation. `take` enters it in the row, and from then on every write of an older generation
is refused: each transaction here first reads the row's generation and keeps it from changing until it has committed.
The row, the journal and the events of a run are written together, so that they agree after any crash.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.exc import DBAPIError

from backplane.domain.dead_letters import dead_reason
from backplane.domain.events import NUMBERS_SKIPPED, Event, EventType, encode
from backplane.domain.runs import FINAL, Ended, Rights, RunError, RunStatus, Taken
from backplane.domain.secrets import Redact
from backplane.errors import Superseded
from backplane.store.agents.circles import lock_questions
from backplane.store.agents.turns import lock_agent_of, lock_agents
from backplane.store.database import Database
from backplane.store.events import LAST_EVENT, add_events
from backplane.store.in_transaction import UPDATE_RUN, RunningRun, agents_of, asks_of, carry_out
from backplane.store.one_statement import as_one_statement
from backplane.store.run_transaction import RunTransaction, unchanged
from backplane.store.run_writes import (
    AddDeadLetter,
    AddEvents,
    EndTurn,
    NotifyWebhook,
    RunWrite,
    SettleAll,
    SkipPendingSteps,
    WakeParent,
)
from backplane.store.tables import runs
from backplane.store.taking import take_at_once, take_in_transaction

# Built once: to build a statement takes longer than to run it.
_RUNNING = (
    select(runs.c.generation, runs.c.user_id, runs.c.webhook_url)
    .where(runs.c.id == bindparam("of_run"), runs.c.status == RunStatus.RUNNING.value)
    .with_for_update(read=True)
)
_STATE_OF_RUN = (
    select(runs.c.generation, runs.c.status, runs.c.user_id, runs.c.webhook_url, runs.c.parent_id, runs.c.agent_id)
    .where(runs.c.id == bindparam("of_run"))
    .with_for_update()
)


class RunningRuns:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, run_id: str, generation: int, worker_id: str | None = None) -> Taken | None:
        """Enter a claim in the row: it is running now, in this generation, by this worker. None when it may not run
        (any more)."""
        if self._database.is_sqlite:
            return await take_in_transaction(self._database, run_id, generation, worker_id)
        return await take_at_once(self._database, run_id, generation, worker_id)

    async def write(
        self, run_id: str, generation: int, work: Callable[[RunTransaction], None], redact: Redact = unchanged
    ) -> None:
        """One transaction with what `work` notes: see `commit`. `redact`: takes the run's secrets out of a JSON
        value."""
        transaction = RunTransaction(redact)
        work(transaction)
        await self.commit(run_id, generation, transaction.writes)

    async def commit(self, run_id: str, generation: int, writes: Sequence[RunWrite]) -> None:
        """Write all of these, or nothing. Raises Superseded when the run is not running in this generation (any more),
        and what a write raises to refuse the whole: BudgetExhausted, CancelRequested, DecisionMade, RunIsOver."""
        if not self._database.is_sqlite:
            at_once = as_one_statement(run_id, generation, writes)
            # It finds nothing where the transaction is refused; the ordinary one then says why.
            if at_once is not None and await self._database.change(*at_once):
                return

        agent_ids, asking = agents_of(writes), asks_of(writes)

        def write(connection: Connection) -> None:
            if asking is not None:
                lock_questions(connection, asking)
            lock_agents(connection, agent_ids)
            row = connection.execute(_RUNNING, {"of_run": run_id}).one_or_none()
            if row is None or row.generation != generation:
                raise Superseded(f"run {run_id} is no longer running in generation {generation}")
            run = RunningRun(run_id, row.user_id, generation, has_webhook=row.webhook_url is not None)
            carry_out(connection, run, writes)

        await self._database.write(write)

    async def end_by_row(self, run_id: str, generation: int, error: RunError, last_id: int | None) -> Ended:
        """Fail a run whose events or results the database refuses: its row in any case, the rest as far as the database
        takes it. `last_id`: of the last event that watchers may have seen; None: not known. `error` is kept as it is:
        it must hold nothing that a run said.

        Raises Superseded when another worker has the run. A run that is not queued or running stays as it is.
        """

        def write(connection: Connection) -> Ended:
            lock_agent_of(connection, run_id)
            row = connection.execute(_STATE_OF_RUN, {"of_run": run_id}).one_or_none()
            if row is None:
                return Ended(None)
            if row.generation > generation:
                raise Superseded(f"run {run_id} is no longer running in generation {generation}")
            if row.status not in (RunStatus.QUEUED.value, RunStatus.RUNNING.value):
                return Ended(RunStatus(row.status))
            now = datetime.now(UTC)
            values = {"status": RunStatus.FAILED.value, "generation": generation, "finished_at": now}
            connection.execute(UPDATE_RUN, {"of_run": run_id, **values, "error": error.as_dict(), "result": None})
            run = RunningRun(run_id, row.user_id, generation, has_webhook=row.webhook_url is not None)
            stored = connection.scalar(LAST_EVENT.query, {"of_run": run_id}) or 0
            events = _last_events(run_id, stored, stored + NUMBERS_SKIPPED if last_id is None else last_id, error)
            writes: list[RunWrite] = [AddEvents(events), SkipPendingSteps(), SettleAll(), NotifyWebhook()]
            if row.parent_id is not None:
                writes.append(WakeParent(row.parent_id))
            if row.agent_id is not None:
                writes.append(EndTurn(row.agent_id, {}))
            if reason := dead_reason(error):
                writes.append(AddDeadLetter(reason, crashes=0))
            for part in writes:
                with suppress(DBAPIError, ValueError, TypeError), connection.begin_nested():
                    carry_out(connection, run, [part])
            stored = connection.scalar(LAST_EVENT.query, {"of_run": run_id}) or 0
            return Ended(RunStatus.FAILED, events, row.user_id, stored)

        return await self._database.write(write)

    async def add_events(self, batches: Mapping[tuple[str, int], Sequence[Event]]) -> frozenset[str]:
        """Store events of several runs, each by (run id, generation). Answers the runs whose generation was refused."""

        def write(connection: Connection) -> frozenset[str]:
            owners = _owners_of_running(connection, dict(batches.keys()))
            new = [event for (run_id, _), batch in batches.items() if run_id in owners for event in batch]
            add_events(connection, new, owners)
            return frozenset(run_id for run_id, _ in batches) - owners.keys()

        return await self._database.write(write)

    async def rights(self, generations: Mapping[str, int]) -> Rights:
        """What became of runs that are held in these generations."""
        query = select(runs.c.id, runs.c.generation, runs.c.status, runs.c.cancel_requested_at).where(
            runs.c.id.in_(generations)
        )
        found = await self._database.read(lambda connection: connection.execute(query).all())
        rows = {row.id: row for row in found}
        superseded = {
            run_id
            for run_id, generation in generations.items()
            if run_id not in rows or rows[run_id].generation > generation or rows[run_id].status in FINAL
        }
        return Rights(
            frozenset(superseded),
            frozenset(run_id for run_id, row in rows.items() if row.cancel_requested_at and run_id not in superseded),
        )


def _last_events(run_id: str, stored: int, last_id: int, error: RunError) -> tuple[Event, ...]:
    """The end of a run, and before it the gap where events up to `last_id` are not stored."""
    body = {"status": RunStatus.FAILED, "error": error.as_dict()}
    new_events: list[tuple[EventType, dict[str, Any]]] = [
        (EventType.STATUS, body),
        (EventType.END, {**body, "result": None}),
    ]
    first = max(stored, last_id) + 1
    if first > stored + 1:
        new_events.insert(0, (EventType.GAP, {"after": stored, "before": first, "reason": "the database refused them"}))
    return tuple(encode(run_id, number, type, data) for number, (type, data) in enumerate(new_events, start=first))


def _owners_of_running(connection: Connection, generations: Mapping[str, int]) -> dict[str, str]:
    """Of these runs by generation, those that are held so, each with its user; their rows stay as they are until the
    transaction ends."""
    query = (
        select(runs.c.id, runs.c.generation, runs.c.user_id)
        .where(runs.c.id.in_(generations), runs.c.status == RunStatus.RUNNING.value)
        .order_by(runs.c.id)
        .with_for_update(read=True)
    )
    return {row.id: row.user_id for row in connection.execute(query) if row.generation == generations[row.id]}
