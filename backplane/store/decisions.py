"""What runs ask people, and what they answered.

A question is written by the worker of the run (`store.run_transaction`); the answer here, by its user, in one
transaction with the state that it leads to: a run that waits is queued again, and the worker that claims it finds out
which steps can go on. The events of a running run are numbered by its worker, so an answer that comes meanwhile has no
event yet; the worker publishes one when it reads the answer (`RunTransaction.unless_decided`).

Nothing is written about the open questions of a run that is over: they are answered as rejected when they are read, and
are open again when its user retries the run.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, insert, or_, select, text, update

from backplane.domain.budgets import RunBudget, run_owner
from backplane.domain.decisions import Decided, Decision, DecisionKind, DecisionStatus, check_answer
from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import FINAL, Run, RunStatus, new_run_id
from backplane.errors import Conflict, InvalidInput, NotFound
from backplane.store.database import Database
from backplane.store.events import add_events, last_event_id
from backplane.store.identity import DECISION_PARENT
from backplane.store.ledger import raise_run_budget
from backplane.store.runs import change_run, locked_run
from backplane.store.tables import accounts, decisions, runs

RUN_IS_OVER = {"reason": "the run is over"}
_COLUMNS: list[ColumnElement[Any]] = [
    *(column for column in decisions.c if column.name != "parent"),
    DECISION_PARENT.label("parent"),
]
_OF_RUN = (
    select(*_COLUMNS).where(decisions.c.run_id == bindparam("of_run")).order_by(decisions.c.created_at, decisions.c.id)
)
_ONE = select(*_COLUMNS).where(decisions.c.run_id == bindparam("of_run"), decisions.c.id == bindparam("of_decision"))
_IS_OPEN = decisions.c.status == text("'pending'")  # as the index has it
_IS_OVER = runs.c.status.in_([status.value for status in FINAL])
_WITH_RUN: list[ColumnElement[Any]] = [*_COLUMNS, _IS_OVER.label("is_over")]


def decision_of(row: Row[Any]) -> Decision:
    values = {column.name: row._mapping[column.name] for column in decisions.c}
    return Decision(**{**values, "kind": DecisionKind(row.kind), "status": DecisionStatus(row.status)})


def add_decision(connection: Connection, decision: Decision) -> None:
    """Add a decision, once: added again, it changes nothing."""
    there = select(decisions.c.id).where(decisions.c.id == decision.id)
    if connection.execute(there).one_or_none() is not None:
        return
    connection.execute(
        insert(decisions),
        {
            "id": decision.id,
            "run_id": decision.run_id,
            "user_id": decision.user_id,
            "step_id": decision.step_id,
            "parent": decision.parent,
            "kind": decision.kind.value,
            "asked": decision.asked,
            "status": decision.status.value,
            "answer": decision.answer,
            "created_at": decision.created_at,
            "decided_at": decision.decided_at,
            "decided_by": decision.decided_by,
        },
    )


def decisions_of_run(connection: Connection, run_id: str) -> list[Decision]:
    return [decision_of(row) for row in connection.execute(_OF_RUN, {"of_run": run_id})]


def copy_decided(connection: Connection, run_id: str, copy_id: str) -> None:
    """Copy the decisions of one run to another, where they count when the same step asks. Those on budgets are not
    copied, as the runs have accounts of their own."""
    decided = [
        decision
        for decision in decisions_of_run(connection, run_id)
        if decision.status is not DecisionStatus.PENDING and decision.kind is not DecisionKind.BUDGET
    ]
    # Ids rise with the time at which they were asked, also where many are made at once.
    for decision, new_id in zip(decided, sorted(new_run_id() for _ in decided), strict=True):
        add_decision(connection, replace(decision, id=new_id, run_id=copy_id))


def as_event_data(decision: Decision) -> dict[str, Any]:
    """The data of the event of a decision that was made."""
    return {
        "decision": decision.id,
        "step": decision.step_id,
        "kind": decision.kind,
        "status": decision.status,
        "answer": decision.answer,
    }


class Decisions:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, run_id: str) -> list[Decision]:
        """All decisions of a run, whoever owns it, oldest first, as they are in the database. For workers."""
        return await self._database.read(lambda connection: decisions_of_run(connection, run_id))

    async def page(
        self,
        user_id: str,
        *,
        run_id: str | None = None,
        status: DecisionStatus | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Decision]:
        """A user's decisions, of all runs or of one, by id from the last. `before` is the last id of the page
        before."""
        query = (
            select(*_WITH_RUN)
            .join(runs, runs.c.id == decisions.c.run_id)
            .where(decisions.c.user_id == user_id)
            .order_by(decisions.c.id.desc())
            .limit(limit)
        )
        if run_id is not None:
            query = query.where(decisions.c.run_id == run_id)
        if before is not None:
            query = query.where(decisions.c.id < before)
        if status is DecisionStatus.PENDING:
            query = query.where(_IS_OPEN, ~_IS_OVER)
        elif status is DecisionStatus.REJECTED:
            query = query.where(or_(decisions.c.status == status.value, and_(_IS_OPEN, _IS_OVER)))
        elif status is not None:
            query = query.where(decisions.c.status == status.value)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_as_read(decision_of(row), is_over=bool(row.is_over)) for row in rows]

    async def decide(
        self,
        user_id: str,
        run_id: str,
        decision_id: str,
        status: DecisionStatus,
        answer: Mapping[str, Any],
        decided_by: str,
    ) -> Decided:
        """Write what a person has decided; `answer` is as DecisionStatus has it. The same decision again changes
        nothing.

        Raises NotFound, Conflict (decided otherwise, or the run is over, or the kind does not take it) and
        InvalidInput; nothing is decided then.
        """
        if "arguments" in answer:
            await self._check_arguments(user_id, run_id, decision_id, answer["arguments"])

        def write(connection: Connection) -> Decided:
            run = locked_run(connection, user_id, run_id)
            row = connection.execute(_ONE, {"of_run": run_id, "of_decision": decision_id}).one_or_none()
            if row is None:
                raise NotFound(f"run {run_id} has no decision {decision_id}; GET /agent/runs/{run_id}/decisions")
            decision = decision_of(row)
            if decision.status is status and decision.answer == dict(answer):
                return Decided(decision, run, [])
            if decision.status is not DecisionStatus.PENDING:
                when = decision.decided_at.isoformat(timespec="seconds") if decision.decided_at else "before"
                raise Conflict(f"decision {decision_id} was {decision.status} already ({when})")
            if run.status in FINAL:
                raise Conflict(f"run {run_id} is {run.status}, so nothing can be decided; retry or fork it first")
            check_answer(decision, status, answer)
            if decision.kind is DecisionKind.BUDGET and status is DecisionStatus.APPROVED and "budget" not in answer:
                _check_it_can_pay(connection, decision)
            made = replace(
                decision, status=status, answer=dict(answer), decided_at=datetime.now(UTC), decided_by=decided_by
            )
            changed, new_events = _write(connection, run, made)
            return Decided(made, changed, new_events, goes_on=run.status is RunStatus.WAITING)

        return await self._database.write(write)

    async def _check_arguments(self, user_id: str, run_id: str, decision_id: str, arguments: Any) -> None:
        """Check arguments before the transaction, and in a thread: it may take a while. What is asked never changes."""
        query = _ONE.where(decisions.c.user_id == user_id)
        values = {"of_run": run_id, "of_decision": decision_id}
        row = await self._database.read(lambda connection: connection.execute(query, values).one_or_none())
        if row is not None and row.status == DecisionStatus.PENDING.value and "schema" in row.asked:
            await asyncio.to_thread(_check_arguments, row.asked["schema"], arguments)


def _check_arguments(schema: Mapping[str, Any], arguments: Any) -> None:
    """Check the arguments that a person gives for a step against the JSON schema of the step's tool. Raises
    InvalidInput. What a schema cannot say, the worker checks, and asks anew where it does not fit. The schema may be a
    stranger's and take some tenths of a second."""
    from backplane.input.argument_schemas import ArgumentsSchema  # noqa: PLC0415 - 0.04 s of CPU and 2 MB

    try:
        ArgumentsSchema(schema).check(arguments)
    except ValueError as error:
        raise InvalidInput(
            f"arguments: {error}; nothing is decided yet: send arguments that the tool takes", field="arguments"
        ) from None


def _check_it_can_pay(connection: Connection, decision: Decision) -> None:
    """Raises InvalidInput for an account of the run that cannot pay what it could not pay: the run would ask again at
    once. Accounts of users and tiers may be filled by what other runs give back."""
    query = select(accounts.c.balance).where(
        accounts.c.id == decision.asked.get("account"),
        accounts.c.owner == run_owner(decision.run_id),
        accounts.c.closed_at.is_(None),
    )
    balance = connection.execute(query).scalar_one_or_none()
    if balance is not None and balance < decision.asked.get("needed", 0):
        raise InvalidInput(
            f'budget: say how much is to be added, as {{"usd": 0.5}} or {{"tokens": 1000}}: '
            f"{decision.asked.get('message', 'the budget is used up')}",
            field="budget",
        )


def _as_read(decision: Decision, *, is_over: bool) -> Decision:
    if not is_over or decision.status is not DecisionStatus.PENDING:
        return decision
    return replace(decision, status=DecisionStatus.REJECTED, answer=RUN_IS_OVER)


def _write(connection: Connection, run: Run, made: Decision) -> tuple[Run, list[Event]]:
    now = made.decided_at or datetime.now(UTC)
    connection.execute(
        update(decisions)
        .where(decisions.c.id == made.id)
        .values(status=made.status.value, answer=made.answer, decided_at=now, decided_by=made.decided_by)
    )
    added = (made.answer or {}).get("budget")
    if added is not None:
        raise_run_budget(connection, run.id, RunBudget(**added), f"decision:{made.id}", "approved")
    if run.status is RunStatus.RUNNING:
        return run, []
    new_events = [encode(run.id, last_event_id(connection, run.id) + 1, EventType.DECISION, as_event_data(made), now)]
    add_events(connection, new_events, {run.id: run.user_id})
    if run.status is not RunStatus.WAITING or run.in_mailbox:
        return run, new_events
    # The attempt's clock begins anew: the time in which a person decided does not count as the run's.
    values = {"status": RunStatus.QUEUED, "queued_at": now, "started_at": None, "error": None}
    queued, more = change_run(connection, run, values, now)
    return queued, new_events + more
