"""Runs as their users act on them: made, started, cancelled, retried, listed.

Each change is one transaction: the row's new state, guarded by the old one, and the event of it. What a worker writes
while it holds a run is in `store.run_transaction`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from backplane.domain.dead_letters import no_dead_letter
from backplane.domain.decisions import DecisionKind, DecisionStatus
from backplane.domain.events import EventType, encode
from backplane.domain.runs import (
    FINAL,
    WAITS_FOR_RUN,
    Changed,
    Ownership,
    Priority,
    Run,
    RunError,
    RunStatus,
    UnfinishedRun,
    check_transition,
)
from backplane.domain.steps import StepStatus
from backplane.errors import Conflict, IdempotencyKeyReused, NotFound, TransitionNotAllowed
from backplane.store.agents.turns import lock_agent_of, open_next, reopened
from backplane.store.bus.notices import note_run
from backplane.store.database import Database, Query
from backplane.store.dead_letters import remove_dead_letter
from backplane.store.events import add_events, last_event_id
from backplane.store.journal import to_be_done_again
from backplane.store.model_calls import plan_anew
from backplane.store.one_statement import create_run, start_run
from backplane.store.tables import decisions, id_begins_with, runs, steps
from backplane.store.webhooks import add_delivery

# What a user sees and what a claim needs; the other columns stay inside.
_INSIDE = {
    "idempotency_key",
    "idempotency_digest",
    "files_removed_at",
    "events_trimmed_at",
    "retention_lease",
}
RUN_COLUMNS = [column for column in runs.c if column.name not in _INSIDE]

# Built once: to build a statement takes longer than to run it.
_USERS_RUN = select(*RUN_COLUMNS).where(runs.c.id == bindparam("of_run"), runs.c.user_id == bindparam("of_user"))
_GET_RUN = Query(_USERS_RUN)
RUN = _GET_RUN.columns
_LOCKED_RUN = _USERS_RUN.with_for_update()
_ANYONES_LOCKED_RUN = select(*RUN_COLUMNS).where(runs.c.id == bindparam("of_run")).with_for_update()
_UPDATE_RUN = update(runs).where(runs.c.id == bindparam("of_run")).returning(*RUN_COLUMNS)
# As `one_statement.start_run` on PostgreSQL: what is not so simple goes the long way.
_START_RUN = (
    update(runs)
    .where(
        runs.c.id == bindparam("of_run"),
        runs.c.user_id == bindparam("of_user"),
        runs.c.status == RunStatus.CREATED.value,
        runs.c.files_expired_at.is_(None),
        runs.c.origin.is_(None),
    )
    .values(status=RunStatus.QUEUED.value, queued_at=bindparam("now"))
    .returning(*RUN_COLUMNS)
)


def run_of(row: Row[Any]) -> Run:
    return run_from(dict(row._mapping))


def run_from(values: Mapping[str, Any]) -> Run:
    """`values` by column."""
    error = values["error"]
    return Run(
        **{
            **values,
            "status": RunStatus(values["status"]),
            "priority": Priority(values["priority"]),
            "error": RunError(**error) if error else None,
        }
    )


def _missing(run_id: str) -> NotFound:
    return NotFound(f"there is no run {run_id} of yours; GET /agent/runs lists those there are")


class Runs:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, run: Run, *, idempotency: tuple[str, str] | None = None, start: bool = False) -> Run:
        """Store a new run, queued at once with `start`. `idempotency` is the caller's key and a digest of the request.

        Answers the run that the same key and digest made before, where there is one. Raises IdempotencyKeyReused when
        the key was used for another request.
        """
        status = RunStatus.QUEUED if start else RunStatus.CREATED
        values = values_of(run, status, idempotency)
        history = [encode(run.id, 1, EventType.STATUS, {"status": "created", "attempt": 1}, run.created_at)]
        if start:
            history.append(encode(run.id, 2, EventType.STATUS, {"status": "queued", "attempt": 1}, run.created_at))

        def write(connection: Connection) -> None:
            connection.execute(insert(runs), values)
            add_events(connection, history, {run.id: run.user_id})

        try:
            if self._database.is_sqlite:
                await self._database.write(write)
            else:
                await self._database.change(*create_run(values, history))
            return replace(run, status=status, queued_at=run.created_at if start else None)
        except IntegrityError:
            earlier = await self.made_before(run.user_id, *idempotency) if idempotency else None
            if earlier is None:
                raise
            return earlier

    async def made_before(self, user_id: str, key: str, digest: str | None) -> Run | None:
        """The run that this idempotency key has made. Raises IdempotencyKeyReused when it was for another request."""
        query = select(*RUN_COLUMNS, runs.c.idempotency_digest).where(
            runs.c.user_id == user_id, runs.c.idempotency_key == key
        )
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        if row.idempotency_digest != digest:
            raise IdempotencyKeyReused(
                f"Idempotency-Key {key!r} was used for another request (run {row.id}); send a new key "
                "with a new request"
            )
        return await self.get(user_id, row.id)

    async def get(self, user_id: str, run_id: str) -> Run:
        """Raises NotFound, also for another user's run."""
        values = {"of_run": run_id, "of_user": user_id}
        rows = await self._database.select(_GET_RUN, values)
        if not rows:
            raise _missing(run_id)
        return run_from(rows[0])

    async def find(self, run_id: str) -> Run | None:
        """The run, whoever owns it; None: there is none. For workers."""
        query = select(*RUN_COLUMNS).where(runs.c.id == run_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return run_of(row) if row else None

    async def ownerships(self, run_ids: Iterable[str]) -> dict[str, Ownership]:
        """Which worker's claim may carry out each of these runs, as far as they exist, whoever owns them."""
        query = select(runs.c.id, runs.c.status, runs.c.generation).where(runs.c.id.in_(list(run_ids)))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.id: Ownership(RunStatus(row.status), row.generation) for row in rows}

    async def page(
        self,
        user_id: str,
        *,
        status: RunStatus | None = None,
        beginning: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Newest first. `beginning`: only ids that begin so. `before` is the id of the last run of the page before."""
        query = select(*RUN_COLUMNS).where(runs.c.user_id == user_id).order_by(runs.c.id.desc()).limit(limit)
        if status:
            query = query.where(runs.c.status == status.value)
        if beginning:
            query = query.where(id_begins_with(runs.c.id, beginning))
        if before:
            query = query.where(runs.c.id < before)
        return [run_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def unfinished(self, *, after: str = "", limit: int = 500) -> list[UnfinishedRun]:
        """Runs that are queued or running, whoever owns them, by id: what Redis has to know."""
        query = (
            select(
                runs.c.id,
                runs.c.user_id,
                runs.c.status,
                runs.c.priority,
                runs.c.generation,
                runs.c.resource,
                runs.c.queue,
                runs.c.handler,
                runs.c.agent_id,
                func.coalesce(runs.c.queued_at, runs.c.created_at, type_=runs.c.queued_at.type).label("queued_at"),
            )
            .where(runs.c.status.in_(["queued", "running"]), runs.c.id > after)
            .order_by(runs.c.id)
            .limit(limit)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            UnfinishedRun(
                row.id,
                row.user_id,
                RunStatus(row.status),
                Priority(row.priority),
                row.generation,
                row.resource,
                row.queued_at,
                row.queue,
                may_sleep=row.generation > 0 and (row.handler is not None or row.agent_id is not None),
            )
            for row in rows
        ]

    async def unfinished_children(self, run_id: str) -> list[str]:
        """Ids of the runs that this one's handler has started and that are not over, whoever owns them."""
        over = [status.value for status in FINAL]
        query = select(runs.c.id).where(runs.c.parent_id == run_id, runs.c.status.not_in(over)).order_by(runs.c.id)
        return list(await self._database.read(lambda connection: connection.scalars(query).all()))

    async def under_way(self) -> dict[RunStatus, int]:
        """How many runs of all users are queued, running or waiting. Its cost does not grow with those that ended."""
        counted = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)
        query = (
            select(runs.c.status, func.count())
            .where(runs.c.status.in_([status.value for status in counted]))
            .group_by(runs.c.status)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return dict.fromkeys(counted, 0) | {RunStatus(status): count for status, count in rows}

    async def start(self, user_id: str, run_id: str) -> Changed:
        """created → queued. A run that is queued or running already is answered as it is, without an event."""
        now = datetime.now(UTC)
        queued = encode(run_id, 2, EventType.STATUS, {"status": "queued", "attempt": 1}, now)
        if not self._database.is_sqlite:
            rows = await self._database.change(*start_run(user_id, run_id, now, queued, RUN_COLUMNS), RUN)
            if rows:
                return run_from(rows[0]), [queued]

        def write(connection: Connection) -> Changed:
            values = {"of_run": run_id, "of_user": user_id, "now": now}
            if (row := connection.execute(_START_RUN, values).one_or_none()) is not None:
                add_events(connection, [queued], {run_id: user_id})
                return run_of(row), [queued]
            run = locked_run(connection, user_id, run_id)
            if run.status in (RunStatus.QUEUED, RunStatus.RUNNING):
                return run, []
            if run.status is not RunStatus.CREATED:
                hint = "retry it" if run.status in (RunStatus.FAILED, RunStatus.WAITING) else "create a new run"
                raise TransitionNotAllowed(f"run {run_id} is {run.status} and was started before; {hint} instead")
            return change_run(connection, run, {"status": RunStatus.QUEUED, "queued_at": now}, now)

        return await self._database.write(write)

    async def cancel(self, user_id: str, run_id: str) -> Changed:
        """Cancel a run at once that no worker has; ask the worker of a running one. The request is in the row, so it is
        not lost."""

        def write(connection: Connection) -> Changed:
            lock_agent_of(connection, run_id)
            run = locked_run(connection, user_id, run_id)
            now = datetime.now(UTC)
            if run.status is RunStatus.CANCELLED or (run.status is RunStatus.RUNNING and run.cancel_requested_at):
                return run, []
            if run.status is RunStatus.RUNNING:
                return request_cancel(connection, run_id, now), []
            values = {"status": RunStatus.CANCELLED, "cancel_requested_at": now, "finished_at": now}
            return change_run(connection, run, values, now)

        return await self._database.write(write)

    async def retry(self, user_id: str, run_id: str, *, uncertain_step_is_done: bool | None) -> Changed:
        """Put a failed or waiting run back in the queue, with all its retries; completed steps are not repeated. The
        caller has to say what becomes of an uncertain step: it is taken as done, or repeated. Raises NotFound,
        TransitionNotAllowed, and Conflict when it is not said (None)."""

        def write(connection: Connection) -> Changed:
            lock_agent_of(connection, run_id)
            run = locked_run(connection, user_id, run_id)
            if uncertain_step_is_done is None:
                _check_nothing_uncertain(connection, run)
            return retried(connection, run, uncertain_step_is_done=uncertain_step_is_done)

        return await self._database.write(write)

    async def redrive(self, run_id: str) -> Changed:
        """Retry a dead-lettered run, whoever owns it; what is uncertain in it, its user is asked. Raises NotFound when
        it is no dead letter (any more), and TransitionNotAllowed when its files are gone."""

        def write(connection: Connection) -> Changed:
            lock_agent_of(connection, run_id)
            row = connection.execute(_ANYONES_LOCKED_RUN, {"of_run": run_id}).one_or_none()
            if row is None or not remove_dead_letter(connection, run_id):
                raise no_dead_letter(run_id)
            return retried(connection, run_of(row), uncertain_step_is_done=None)

        return await self._database.write(write)


def may_have_happened(run_id: str, step_id: str) -> Conflict:
    """The error for a step that only a person may have repeated."""
    return Conflict(
        f"step {step_id!r} of run {run_id} may have happened, or has: look what it has done, then retry the "
        'run with uncertain_step "done" or "repeat"'
    )


def _check_nothing_uncertain(connection: Connection, run: Run) -> None:
    """Raises Conflict when there is an uncertain step."""
    query = select(steps.c.step_id).where(steps.c.run_id == run.id, steps.c.status == StepStatus.UNCERTAIN.value)
    uncertain = connection.scalars(query.order_by(steps.c.position)).first()
    if uncertain is not None and run.status in (RunStatus.FAILED, RunStatus.WAITING, RunStatus.COMPLETED):
        raise may_have_happened(run.id, uncertain)


def retried(
    connection: Connection, run: Run, *, uncertain_step_is_done: bool | None, from_a_step: bool = False
) -> Changed:
    """A locked row is queued as if for the first time. If it was a dead letter, it is none any more. A completed run
    goes on only `from_a_step` that is to be done again. None: uncertain steps stay so, and the run asks again. A
    message, whose agent's row is locked already, goes back into the mailbox where the agent has another one open."""
    if run.status is RunStatus.COMPLETED and not from_a_step:
        raise TransitionNotAllowed(f"run {run.id} is completed; name a step to do it again from there, or make a fork")
    if run.status not in (RunStatus.FAILED, RunStatus.WAITING, RunStatus.COMPLETED):
        raise TransitionNotAllowed(f"run {run.id} is {run.status}; only a failed or a waiting run is retried")
    if run.in_mailbox:
        raise TransitionNotAllowed(f"run {run.id} is in its agent's mailbox; the agent comes to it by itself")
    remove_dead_letter(connection, run.id)
    plan_anew(connection, run.id)
    now = datetime.now(UTC)
    has_effects = run.handler is not None or run.agent_id is not None
    failed_effect = run.error.step if has_effects and run.error is not None else None
    changes = {to_be_done_again(run.id, run.plan, failed_effect): StepStatus.PENDING}
    if uncertain_step_is_done is not None:
        decided = StepStatus.COMPLETED if uncertain_step_is_done else StepStatus.PENDING
        changes[steps.c.status == StepStatus.UNCERTAIN.value] = decided
    _expire_approvals(connection, run.id, [old for old, new in changes.items() if new is StepStatus.PENDING], now)
    for old, new in changes.items():
        connection.execute(update(steps).where(steps.c.run_id == run.id, old).values(status=new.value))
    values: dict[str, Any] = {
        "status": RunStatus.QUEUED,
        "attempt": 1,
        "queued_at": now,
        "started_at": None,
        "finished_at": None,
        "cancel_requested_at": None,
        "error": None,
        "result": None,
        "events_trimmed_at": None,
    }
    if run.status is not RunStatus.WAITING:
        # The time that its sender gave it is up, or soon; its user wants it done all the same.
        values["expires_at"] = None
        if run.agent_id is not None:
            values |= reopened(connection, run.agent_id, run.id)
    return change_run(connection, run, values, now)


def _expire_approvals(
    connection: Connection, run_id: str, to_be_repeated: Sequence[ColumnElement[bool]], now: datetime
) -> None:
    """An approval counts for one execution of its step: before a person's retry does that again, it is asked for again.
    An approval whose step was not begun yet still counts."""
    begun = select(steps.c.step_id).where(steps.c.run_id == run_id, steps.c.tries > 0, or_(*to_be_repeated))
    connection.execute(
        update(decisions)
        .where(
            decisions.c.run_id == run_id,
            decisions.c.step_id.in_(begun),
            decisions.c.kind == DecisionKind.APPROVAL.value,
            decisions.c.status == DecisionStatus.APPROVED.value,
            decisions.c.expired_at.is_(None),
        )
        .values(expired_at=now)
    )


def wake_parent(connection: Connection, parent_id: str) -> None:
    """Queue a run that waits for one that is over now. The queue gets to know it by `run_actions.push_again`, or by the
    leading worker's next look."""
    row = connection.execute(_ANYONES_LOCKED_RUN, {"of_run": parent_id}).one_or_none()
    parent = run_of(row) if row else None
    if parent is None or parent.status is not RunStatus.WAITING or parent.files_expired_at is not None:
        return
    if parent.error is not None and parent.error.code == WAITS_FOR_RUN:
        now = datetime.now(UTC)
        # The attempt's clock begins anew: the time of the other run does not count as its own.
        values = {"status": RunStatus.QUEUED, "queued_at": now, "started_at": None, "error": None}
        change_run(connection, parent, values, now)


def values_of(run: Run, status: RunStatus, idempotency: tuple[str, str] | None) -> dict[str, Any]:
    """A new run by column."""
    key, digest = idempotency or (None, None)
    return {
        "id": run.id,
        "user_id": run.user_id,
        "status": status.value,
        "priority": int(run.priority),
        "generation": 0,
        "attempt": 1,
        "prompt": run.prompt,
        "metadata": run.metadata,
        "given_plan": run.given_plan,
        "plan": run.plan,
        "timeout_seconds": run.timeout_seconds,
        "max_retries": run.max_retries,
        "resource": run.resource,
        "queue": run.queue,
        "agent": run.agent,
        "model": run.model,
        "planner": run.planner,
        "budget": run.budget,
        "mcp_servers": run.mcp_servers,
        "origin": run.origin,
        "restore": run.restore,
        "webhook_url": run.webhook_url,
        "handler": run.handler,
        "input": run.input,
        "parent_id": run.parent_id,
        "created_at": run.created_at,
        "queued_at": run.created_at if status is RunStatus.QUEUED else None,
        "idempotency_key": key,
        "idempotency_digest": digest,
        **({"expires_at": run.expires_at} if run.expires_at is not None else {}),
        **(_values_of_message(run) if run.agent_id is not None else {}),
    }


def _values_of_message(run: Run) -> dict[str, Any]:
    return {
        "agent_id": run.agent_id,
        "turn": run.turn,
        "in_mailbox": run.in_mailbox,
        "error": run.error.as_dict() if run.error else None,
    }


def locked_run(connection: Connection, user_id: str, run_id: str) -> Run:
    """The user's run, which nobody else changes until the transaction ends. Raises NotFound."""
    row = connection.execute(_LOCKED_RUN, {"of_run": run_id, "of_user": user_id}).one_or_none()
    if row is None:
        raise _missing(run_id)
    return run_of(row)


def _update(connection: Connection, run_id: str, values: Mapping[str, Any]) -> Run:
    return run_of(connection.execute(_UPDATE_RUN, {"of_run": run_id, **values}).one())


def request_cancel(connection: Connection, run_id: str, now: datetime) -> Run:
    """Ask the worker of a running run, whose row is locked, to cancel it."""
    return _update(connection, run_id, {"cancel_requested_at": now})


def change_run(connection: Connection, run: Run, values: Mapping[str, Any], now: datetime) -> Changed:
    """A transition of a locked row, with its events. Of a message that is over after it the agent's row is locked
    already."""
    is_queued = values["status"] is RunStatus.QUEUED or values.get("in_mailbox", False)
    check_transition(run.id, run.status, RunStatus.QUEUED if is_queued else values["status"])
    if is_queued and run.files_expired_at is not None:
        raise TransitionNotAllowed(
            f"run {run.id} is past its time and its files are gone (RETENTION_WORKSPACE_DAYS); make a new run"
        )
    more = {"in_mailbox": False} if run.in_mailbox else {}
    changed = _update(connection, run.id, {**more, **values, "status": values["status"].value})
    number = last_event_id(connection, run.id) + 1
    new_events = [encode(run.id, number, EventType.STATUS, {"status": changed.status, "attempt": changed.attempt}, now)]
    if changed.status in FINAL:
        new_events.append(encode(run.id, number + 1, EventType.END, {"status": changed.status}, now))
        add_delivery(connection, changed)
        note_run(connection, changed.id)
        if changed.parent_id is not None:
            wake_parent(connection, changed.parent_id)
        if changed.agent_id is not None:
            open_next(connection, changed.agent_id, ended=changed.id)
    add_events(connection, new_events, {run.id: run.user_id})
    return changed, new_events
