"""What a worker writes about a run while it holds it.

Each claim of a run has a generation. `take` enters it in the row, and from then on every write of an older generation
is refused: each transaction here first reads the row's generation and keeps it from changing until it has committed.
The row, the journal and the events of a run are written together, so that no crash can part them.

Texts of a run are redacted here, on their way into the database: results, errors, questions, records of model calls,
titles. Not so its plan, which is what is carried out (a model's was redacted when it was answered, a person's is
theirs), and not the paths in `steps.files` and `steps.attributes` (with the targets of links), by which files are found
again and which nobody is shown. Events are redacted before they are numbered (`worker.run.events`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, overload

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from backplane.domain.budgets import Amounts, Resource, Spender
from backplane.domain.dead_letters import DeadReason, dead_reason
from backplane.domain.decisions import Decision, DecisionMade, DecisionStatus
from backplane.domain.events import NUMBERS_SKIPPED, Event, EventType, encode
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.plans import Plan
from backplane.domain.runs import FINAL, CancelRequested, Ended, Rights, RunError, RunStatus, Taken
from backplane.domain.secrets import Redact
from backplane.domain.steps import FINAL_FAILURE, StepRecord, StepStatus
from backplane.errors import Superseded
from backplane.store.database import Database
from backplane.store.dead_letters import add_dead_letter, note_failure
from backplane.store.decisions import add_decision, decisions_of_run
from backplane.store.events import LAST_EVENT, add_events
from backplane.store.journal import to_be_done_again
from backplane.store.model_calls import begin_model_call, end_model_call, plan_anew
from backplane.store.one_statement import Gathered, NotGathered
from backplane.store.reservations import open_budget, release, reserve, settle, settle_lost, settle_rest
from backplane.store.runs import RUN_COLUMNS, run_of
from backplane.store.tables import decisions, plan_versions, run_tools, runs, steps
from backplane.store.taking import take_at_once, take_in_transaction
from backplane.store.webhooks import add_delivery

Value = TypeVar("Value")

# Built once: to build a statement takes longer than to run it.
_LOCKED_RUN = select(*RUN_COLUMNS).where(runs.c.id == bindparam("of_run")).with_for_update()
_HELD_IN = (
    select(runs.c.generation, runs.c.user_id, runs.c.webhook_url)
    .where(runs.c.id == bindparam("of_run"), runs.c.status == RunStatus.RUNNING.value)
    .with_for_update(read=True)
)
_STATE_OF_RUN = (
    select(runs.c.generation, runs.c.status, runs.c.user_id, runs.c.webhook_url)
    .where(runs.c.id == bindparam("of_run"))
    .with_for_update()
)
_CANCEL_REQUESTED = select(runs.c.cancel_requested_at).where(runs.c.id == bindparam("of_run"))
_UPDATE_RUN = update(runs).where(runs.c.id == bindparam("of_run"))
_SAVE_PLAN = _UPDATE_RUN.where(runs.c.plan.is_(None))
_UPDATE_STEP = update(steps).where(steps.c.run_id == bindparam("of_run"), steps.c.step_id == bindparam("of_step"))


def _as_it_is(value: Value, /) -> Value:
    return value


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
        self, run_id: str, generation: int, work: Callable[["RunTransaction"], None], redact: Redact | None = None
    ) -> None:
        """A transaction on a run that is held in this generation. Raises Superseded when it no longer is. `work` may be
        called twice. `redact`: takes the run's secrets out of a JSON value; None: it has none."""
        redact = redact or _as_it_is
        if not self._database.is_sqlite and await self._write_at_once(run_id, generation, work, redact):
            return

        def write(connection: Connection) -> None:
            row = connection.execute(_HELD_IN, {"of_run": run_id}).one_or_none()
            if row is None or row.generation != generation:
                raise Superseded(f"run {run_id} is no longer held in generation {generation}")
            has_webhook = row.webhook_url is not None
            work(RunTransaction(connection, run_id, row.user_id, generation, redact, has_webhook=has_webhook))

        await self._database.write(write)

    async def _write_at_once(
        self, run_id: str, generation: int, work: Callable[["RunTransaction"], None], redact: Redact
    ) -> bool:
        """Whether it could be written as one statement, and was."""
        gathered = Gathered()
        try:
            work(GatheringRun(gathered, redact))
            statement, values = gathered.statement(run_id, generation)
        except NotGathered:
            return False
        return bool(await self._database.change(statement, values))

    async def end_by_row(self, run_id: str, generation: int, error: RunError, last_id: int | None) -> Ended:
        """Fail a run of which more cannot be stored: its row by all means, the rest where the database takes it.
        `last_id`: of the last event that watchers may have seen; None: not known. `error` is kept as it is: it must
        hold nothing that a run said.

        Raises Superseded when another worker has the run. A run that is not queued or running stays as it is.
        """

        def write(connection: Connection) -> Ended:
            row = connection.execute(_STATE_OF_RUN, {"of_run": run_id}).one_or_none()
            if row is None:
                return Ended(None)
            if row.generation > generation:
                raise Superseded(f"run {run_id} is no longer held in generation {generation}")
            if row.status not in (RunStatus.QUEUED.value, RunStatus.RUNNING.value):
                return Ended(RunStatus(row.status))
            now = datetime.now(UTC)
            values = {"status": RunStatus.FAILED.value, "generation": generation, "finished_at": now}
            connection.execute(_UPDATE_RUN, {"of_run": run_id, **values, "error": error.as_dict(), "result": None})
            has_webhook = row.webhook_url is not None
            held = RunTransaction(connection, run_id, row.user_id, generation, _as_it_is, has_webhook=has_webhook)
            stored = connection.scalar(LAST_EVENT.query, {"of_run": run_id}) or 0
            events = _last_events(run_id, stored, stored + NUMBERS_SKIPPED if last_id is None else last_id, error)
            parts: list[Callable[[], object]] = [
                lambda: held.add_events(events),
                held.skip_pending_steps,
                held._let_go,
                held._tell_webhook,
            ]
            if reason := dead_reason(error):
                parts.append(lambda: held.dead_letter(reason))
            for part in parts:
                with suppress(DBAPIError, ValueError, TypeError), connection.begin_nested():
                    part()
            stored = connection.scalar(LAST_EVENT.query, {"of_run": run_id}) or 0
            return Ended(RunStatus.FAILED, events, row.user_id, stored)

        return await self._database.write(write)

    async def add_events(self, batches: Mapping[tuple[str, int], Sequence[Event]]) -> frozenset[str]:
        """Store events of several runs, each by (run id, generation). Answers the runs whose generation was refused."""

        def write(connection: Connection) -> frozenset[str]:
            owners = _owners_of_held(connection, dict(batches.keys()))
            new = [event for (run_id, _), batch in batches.items() if run_id in owners for event in batch]
            add_events(connection, new, owners)
            return frozenset(run_id for run_id, _ in batches) - owners.keys()

        return await self._database.write(write)

    async def rights(self, held: Mapping[str, int]) -> Rights:
        """What became of runs that are held in these generations."""
        query = select(runs.c.id, runs.c.generation, runs.c.status, runs.c.cancel_requested_at).where(
            runs.c.id.in_(held)
        )
        found = await self._database.read(lambda connection: connection.execute(query).all())
        rows = {row.id: row for row in found}
        superseded = {
            run_id
            for run_id, generation in held.items()
            if run_id not in rows or rows[run_id].generation > generation or rows[run_id].status in FINAL
        }
        return Rights(
            frozenset(superseded),
            frozenset(run_id for run_id, row in rows.items() if row.cancel_requested_at and run_id not in superseded),
        )


def _last_events(run_id: str, stored: int, last_id: int, error: RunError) -> tuple[Event, ...]:
    """The end of a run, and before it the gap where events up to `last_id` are not stored."""
    body = {"status": RunStatus.FAILED, "error": error.as_dict()}
    told: list[tuple[EventType, dict[str, Any]]] = [(EventType.STATUS, body), (EventType.END, {**body, "result": None})]
    first = max(stored, last_id) + 1
    if first > stored + 1:
        told.insert(0, (EventType.GAP, {"after": stored, "before": first, "reason": "the database refused them"}))
    return tuple(encode(run_id, number, type, data) for number, (type, data) in enumerate(told, start=first))


def _owners_of_held(connection: Connection, held: Mapping[str, int]) -> dict[str, str]:
    """Of these runs by generation, those that are held so, each with its user; their rows stay as they are until the
    transaction ends."""
    query = (
        select(runs.c.id, runs.c.generation, runs.c.user_id)
        .where(runs.c.id.in_(held), runs.c.status == RunStatus.RUNNING.value)
        .order_by(runs.c.id)
        .with_for_update(read=True)
    )
    return {row.id: row.user_id for row in connection.execute(query) if row.generation == held[row.id]}


class RunTransaction:
    """One guarded transaction. What is written here is committed together, or not at all."""

    def __init__(
        self,
        connection: Connection,
        run_id: str,
        user_id: str,
        generation: int,
        redact: Redact,
        *,
        has_webhook: bool,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._user_id = user_id
        self._generation = generation
        self._redact = redact
        self._has_webhook = has_webhook

    def add_events(self, events: Iterable[Event]) -> None:
        add_events(self._connection, events, {self._run_id: self._user_id})

    def save_plan(self, plan: Plan, journal: Iterable[StepRecord]) -> None:
        """Keep the plan, and its journal as it begins. Once: it may be asked for again when a commit's answer was
        lost."""
        values = {"of_run": self._run_id, "plan": plan.model_dump(mode="json")}
        if self._connection.execute(_SAVE_PLAN, values).rowcount:
            self._connection.execute(insert(steps), [self._row_of(record) for record in journal])

    def begin_step(self, step_id: str, tries: int) -> None:
        self._step(step_id, status=StepStatus.STARTED.value, tries=tries, started_at=datetime.now(UTC))

    def step_is_changing(self, step_id: str) -> None:
        self._step(step_id, status=StepStatus.CHANGING.value)

    def end_step(
        self,
        step_id: str,
        status: StepStatus,
        result: Mapping[str, Any] | None = None,
        files: Mapping[str, str | None] | None = None,
        failed_tries: int | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """`files`, `attributes`: what changed in the workspace since the step before it ended (`StepRecord`)."""
        values: dict[str, Any] = {} if files is None else {"files": dict(files)}
        if attributes is not None:
            values["attributes"] = dict(attributes)
        if failed_tries is not None:
            values["failed_tries"] = failed_tries
        result = self._redact(result)
        self._step(step_id, status=status.value, result=result, finished_at=datetime.now(UTC), **values)

    def begin_model_call(self, call: BeginningCall) -> None:
        call = replace(call, request=self._redact(call.request))
        begin_model_call(self._connection, self._run_id, self._generation, call)

    def end_model_call(
        self,
        key: CallKey,
        status: CallStatus,
        totals: CallTotals,
        *,
        response: Mapping[str, Any] | None = None,
        error: RunError | None = None,
    ) -> None:
        """A call that stays `started` is tried again."""
        response, error = self._redact(response), self._redacted_error(error)
        end_model_call(self._connection, self._run_id, key, status, totals, response=response, error=error)

    def open_budget(self, tier: str, limits: Mapping[Resource, int]) -> None:
        """Give the run accounts of its own. Once, however often it is held. `tier`, here and below: its user's."""
        open_budget(self._connection, self._spender(tier), limits)

    def reserve_budget(self, tier: str, reservation_id: str, step_id: str, amounts: Amounts) -> None:
        """Raises BudgetExhausted; nothing of the transaction is written then. While a reservation of this id is open,
        it changes nothing."""
        reserve(self._connection, self._spender(tier), reservation_id, step_id, amounts)

    def settle_budget(self, tier: str, reservation_id: str, spent: Amounts) -> None:
        """Changes nothing when there is no such reservation (any more); so does a release."""
        settle(self._connection, self._spender(tier), reservation_id, spent)

    def release_budget(self, tier: str, reservation_id: str) -> None:
        release(self._connection, self._spender(tier), reservation_id)

    def settle_lost_budget(self, tier: str) -> None:
        """What older generations left reserved: tokens and dollars count as spent, steps and seconds go back."""
        settle_lost(self._connection, self._spender(tier))

    def _spender(self, tier: str) -> Spender:
        return Spender(self._run_id, self._user_id, tier, self._generation)

    def suspend_step(self, step_id: str) -> None:
        """It is to be called again when a person has decided what it waits for; nothing of it is in doubt."""
        self._step(step_id, status=StepStatus.PENDING.value)

    def add_step(self, record: StepRecord) -> None:
        """One below another step, which no plan holds. Once."""
        connection = self._connection
        there = select(steps.c.step_id).where(steps.c.run_id == self._run_id, steps.c.step_id == record.step_id)
        if connection.execute(there).one_or_none() is None:
            connection.execute(insert(steps), self._row_of(record))

    def note_tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Keep the tools of MCP servers that the run is offered, in place of those noted before."""
        self._connection.execute(delete(run_tools).where(run_tools.c.run_id == self._run_id))
        self._connection.execute(insert(run_tools).values(run_id=self._run_id, tools=list(tools)))

    def replace_plan(self, plan: Plan, version: int, reason: str, journal: Iterable[StepRecord]) -> None:
        """Go on with another plan, the run's `version`th, and keep the one before. `journal`: the steps that are new in
        it. Those that are not in it and were not begun are skipped; what they asked a person is rejected. Once."""
        row = self._connection.execute(_LOCKED_RUN, {"of_run": self._run_id}).one()
        if row.plan_version >= version:
            return
        now = datetime.now(UTC)
        self._connection.execute(
            insert(plan_versions),
            {
                "run_id": self._run_id,
                "version": row.plan_version,
                "plan": row.plan,
                "replaced_at": now,
                "reason": self._redact(reason),
            },
        )
        kept = [step.id for step in plan.steps]
        dropped = select(steps.c.step_id).where(
            steps.c.run_id == self._run_id,
            steps.c.step_id.not_in(kept),
            steps.c.status == StepStatus.PENDING.value,
        )
        self._connection.execute(
            update(decisions)
            .where(
                decisions.c.run_id == self._run_id,
                decisions.c.step_id.in_(dropped),
                decisions.c.status == DecisionStatus.PENDING.value,
            )
            .values(status=DecisionStatus.REJECTED.value, answer={"reason": "the plan was replaced"}, decided_at=now)
        )
        self._connection.execute(
            update(steps)
            .where(steps.c.run_id == self._run_id, steps.c.step_id.in_(dropped))
            .values(status=StepStatus.SKIPPED.value)
        )
        new = [self._row_of(record) for record in journal]
        if new:
            self._connection.execute(insert(steps), new)
        self._run(plan=plan.model_dump(mode="json"), plan_version=version)

    def skip_pending_steps(self) -> None:
        self._connection.execute(
            update(steps)
            .where(steps.c.run_id == self._run_id, steps.c.status == StepStatus.PENDING.value)
            .values(status=StepStatus.SKIPPED.value)
        )

    def reopen_steps(self) -> None:
        """Before another attempt: what failed or was skipped is to be done again, but for what only a person may have
        done again (FINAL_FAILURE). What was cut off stays as it is, so that the supervisor decides whether it may be
        repeated."""
        row = self._connection.execute(_LOCKED_RUN, {"of_run": self._run_id}).one()
        failed = select(steps.c.step_id, steps.c.result).where(
            steps.c.run_id == self._run_id, steps.c.status == StepStatus.FAILED.value
        )
        final = [step.step_id for step in self._connection.execute(failed) if (step.result or {}).get(FINAL_FAILURE)]
        again = update(steps).where(steps.c.run_id == self._run_id, to_be_done_again(row.plan))
        if final:
            again = again.where(steps.c.step_id.not_in(final))
        self._connection.execute(again.values(status=StepStatus.PENDING.value))

    def note_failure(self, attempt: int, error: RunError, traceback: str = "", worker_id: str | None = None) -> None:
        """Keep what this attempt died of. Written again, it replaces what was written."""
        error, trace = self._redacted_error(error), self._redact(traceback)
        note_failure(self._connection, self._run_id, self._generation, attempt, error, trace, worker_id)

    def dead_letter(self, reason: DeadReason, crashes: int = 0) -> None:
        """Leave the run to an operator; `finish` is still to be called. `crashes`: workers that were lost with it."""
        add_dead_letter(self._connection, self._run_id, reason, crashes)

    def finish(self, status: RunStatus, error: RunError | None, result: Mapping[str, Any] | None = None) -> None:
        self._run(
            status=status.value,
            finished_at=datetime.now(UTC),
            error=self._kept_error(error),
            result=self._redact(dict(result)) if result is not None else None,
        )
        self._let_go()
        self._tell_webhook()

    def unless_cancelled(self) -> None:
        """Raises CancelRequested when its user has asked for the end of the run; nothing is written then."""
        if self._connection.scalar(_CANCEL_REQUESTED, {"of_run": self._run_id}) is not None:
            raise CancelRequested(f"run {self._run_id} is to be cancelled")

    def ask(self, decision: Decision) -> None:
        """Write down what a person is asked. Asked again, by its id, it changes nothing."""
        add_decision(self._connection, replace(decision, asked=self._redact(decision.asked)))

    def unless_decided(self, decision_ids: Iterable[str]) -> None:
        """Raises DecisionMade when one of these is not pending any more; nothing is written then. Its event is to be
        told by whoever holds the run, as the answer came while it was held."""
        awaited = set(decision_ids)
        for decision in decisions_of_run(self._connection, self._run_id) if awaited else ():
            if decision.id in awaited and decision.status is not DecisionStatus.PENDING:
                raise DecisionMade(f"decision {decision.id} of run {self._run_id} is {decision.status}")

    def restored(self) -> None:
        """The files are what `Run.restore` asked for."""
        self._run(restore=None)

    def wait_for_person(self, error: RunError, decision_ids: Iterable[str] = ()) -> None:
        """Raises DecisionMade when one of these decisions, which it would wait for, is made already."""
        self.unless_decided(decision_ids)
        self._run(status=RunStatus.WAITING.value, error=self._kept_error(error))
        self._let_go()
        self._tell_webhook()

    def queue_again(self, *, attempt: int | None, error: RunError | None) -> None:
        """Give the run back: for its next attempt, whose clock begins anew, or (None) in the middle of this one."""
        values: dict[str, Any] = {"status": RunStatus.QUEUED.value, "error": self._kept_error(error)}
        if attempt is not None:
            values |= {"attempt": attempt, "started_at": None}
            plan_anew(self._connection, self._run_id)
        self._run(queued_at=datetime.now(UTC), **values)
        self._let_go()

    def _row_of(self, record: StepRecord) -> dict[str, Any]:
        return {"run_id": self._run_id, **asdict(self._redacted_record(record))}

    def _redacted_record(self, record: StepRecord) -> StepRecord:
        if self._redact is _as_it_is:
            return record
        return replace(record, title=self._redact(record.title), result=self._redact(record.result))

    @overload
    def _redacted_error(self, error: RunError) -> RunError: ...
    @overload
    def _redacted_error(self, error: RunError | None) -> RunError | None: ...
    def _redacted_error(self, error: RunError | None) -> RunError | None:
        return replace(error, message=self._redact(error.message)) if error else None

    def _kept_error(self, error: RunError | None) -> dict[str, Any] | None:
        return self._redacted_error(error).as_dict() if error else None

    def _let_go(self) -> None:
        """Nothing stays reserved for a run that nobody holds."""
        settle_rest(self._connection, self._run_id, self._user_id, self._generation)

    def _tell_webhook(self) -> None:
        if self._has_webhook:
            row = self._connection.execute(_LOCKED_RUN, {"of_run": self._run_id}).one()
            add_delivery(self._connection, run_of(row))

    def _run(self, **values: Any) -> None:
        self._connection.execute(_UPDATE_RUN, {"of_run": self._run_id, **values})

    def _step(self, step_id: str, **values: Any) -> None:
        self._connection.execute(_UPDATE_STEP, {"of_run": self._run_id, "of_step": step_id, **values})


class GatheringRun(RunTransaction):
    """Notes what is to be written. Raises NotGathered for what asks the database first."""

    def __init__(self, gathered: Gathered, redact: Redact) -> None:
        self._gathered = gathered
        self._redact = redact

    @property
    def _connection(self) -> Connection:  # type: ignore[override]
        raise NotGathered

    def _spender(self, tier: str) -> Spender:
        raise NotGathered

    def add_events(self, events: Iterable[Event]) -> None:
        self._gathered.events.extend(events)

    def save_plan(self, plan: Plan, journal: Iterable[StepRecord]) -> None:
        self._gathered.save_plan(plan, [self._redacted_record(record) for record in journal])

    def _let_go(self) -> None:
        self._gathered.lets_go = True

    def _tell_webhook(self) -> None:
        self._gathered.tells_webhook = True

    def _run(self, **values: Any) -> None:
        self._gathered.run.update(values)

    def _step(self, step_id: str, **values: Any) -> None:
        self._gathered.change_step(step_id, values)
