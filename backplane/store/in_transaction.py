"""The writes of a running run, carried out one after another in an ordinary transaction.

This is the rule for both databases. `store.one_statement` does the same for the writes that it knows, in one round trip
to PostgreSQL.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from backplane.domain.budgets import Spender
from backplane.domain.bus import EventArrived, WaitStatus
from backplane.domain.decisions import DecisionMade, DecisionStatus
from backplane.domain.events import Event
from backplane.domain.runs import FINAL, CancelRequested, Run, RunIsOver, RunStatus
from backplane.domain.steps import FINAL_FAILURE, StepRecord, StepStatus
from backplane.store import run_writes
from backplane.store.agents.circles import refuse_circle
from backplane.store.agents.messages import send
from backplane.store.agents.turns import end_turn
from backplane.store.bus.notices import note_run
from backplane.store.bus.waits import add_wait
from backplane.store.dead_letters import add_dead_letter, note_failure
from backplane.store.decisions import add_decision, decisions_of_run
from backplane.store.events import add_events
from backplane.store.journal import to_be_done_again
from backplane.store.model_calls import begin_model_call, end_model_call, plan_anew
from backplane.store.model_usage import TakenNow, add_usage, taken_now
from backplane.store.reservations import open_budget, release, reserve, settle, settle_lost, settle_rest
from backplane.store.run_writes import RunWrite
from backplane.store.runs import RUN_COLUMNS, run_of, values_of, wake_parent
from backplane.store.tables import decisions, plan_versions, run_tools, runs, steps
from backplane.store.webhooks import add_delivery

# Built once: to build a statement takes longer than to run it.
_LOCKED_RUN = select(*RUN_COLUMNS).where(runs.c.id == bindparam("of_run")).with_for_update()
_CANCEL_REQUESTED = select(runs.c.cancel_requested_at).where(runs.c.id == bindparam("of_run"))
UPDATE_RUN = update(runs).where(runs.c.id == bindparam("of_run"))
_SAVE_PLAN = UPDATE_RUN.where(runs.c.plan.is_(None))
_UPDATE_STEP = update(steps).where(steps.c.run_id == bindparam("of_run"), steps.c.step_id == bindparam("of_step"))


@dataclass(frozen=True, slots=True)
class RunningRun:
    """What the writes need to know of a run that is locked in this transaction."""

    id: str
    user_id: str
    generation: int
    has_webhook: bool

    def spender(self, tier: str) -> Spender:
        return Spender(self.id, self.user_id, tier, self.generation)


def carry_out(connection: Connection, run: RunningRun, writes: Iterable[RunWrite]) -> None:
    """Carry the writes out. Raises what refuses the transaction: BudgetExhausted, CancelRequested, DecisionMade,
    RunIsOver, and of a message NotFound, AgentTerminated, MailboxFull, AskCircle. The questions of `asks_of` the
    writes are locked already, and so are the rows of `agents_of` them."""
    taken = list[TakenNow]()
    for write in writes:
        if isinstance(write, run_writes.EndModelCall) and write.was_made:
            now = taken_now(connection, run.id, write.key, write.status, write.totals)
            taken += [now] if now else []
        _carry_out(connection, run, write)
    add_usage(connection, run.id, taken)


def agents_of(writes: Iterable[RunWrite]) -> set[str]:
    """Ids of the agents whose rows the writes change: they are locked before the run's."""
    ids = set()
    for write in writes:
        if isinstance(write, run_writes.EndTurn):
            ids.add(write.agent_id)
        elif isinstance(write, run_writes.SendMessage):
            ids.add(write.run.agent_id or "")
    return ids


def asks_of(writes: Iterable[RunWrite]) -> str | None:
    """The user whose questions are locked before all else, where the writes send one."""
    for write in writes:
        if isinstance(write, run_writes.SendMessage) and write.run.parent_id is not None:
            return write.run.user_id
    return None


def _carry_out(connection: Connection, run: RunningRun, write: RunWrite) -> None:
    match write:
        case run_writes.AddEvents(events):
            add_events(connection, events, {run.id: run.user_id})
        case run_writes.ChangeStep(step_id, values):
            connection.execute(_UPDATE_STEP, {"of_run": run.id, "of_step": step_id, **values})
        case run_writes.ChangeRun(values):
            connection.execute(UPDATE_RUN, {"of_run": run.id, **values})
        case run_writes.SavePlan(plan, journal):
            if connection.execute(_SAVE_PLAN, {"of_run": run.id, "plan": plan.model_dump(mode="json")}).rowcount:
                _add_steps(connection, run, journal)
        case run_writes.SettleAll():
            settle_rest(connection, run.id, run.user_id, run.generation)
        case run_writes.NotifyWebhook():
            if run.has_webhook:
                add_delivery(connection, run_of(connection.execute(_LOCKED_RUN, {"of_run": run.id}).one()))
            note_run(connection, run.id)
        case run_writes.AddStep(record):
            there = select(steps.c.step_id).where(steps.c.run_id == run.id, steps.c.step_id == record.step_id)
            if connection.execute(there).one_or_none() is None:
                _add_steps(connection, run, [record])
        case run_writes.SkipPendingSteps():
            pending = (steps.c.run_id == run.id, steps.c.status == StepStatus.PENDING.value)
            connection.execute(update(steps).where(*pending).values(status=StepStatus.SKIPPED.value))
        case run_writes.ReopenSteps(failed_effect):
            _reopen_steps(connection, run, failed_effect)
        case run_writes.AddChildRun(child, events):
            _add_child_run(connection, child, events)
        case run_writes.WakeParent(parent_id):
            wake_parent(connection, parent_id)
        case run_writes.EndTurn(agent_id, changes):
            end_turn(connection, agent_id, run.id, changes)
        case run_writes.SendMessage(step_id, message, mailbox_max):
            if message.parent_id is not None:
                refuse_circle(connection, message, str((message.origin or {}).get("agent_id")))
            send(connection, message, sender_id=run.id, step_id=step_id, mailbox_max=mailbox_max)
        case run_writes.UnlessOver(run_ids):
            for other, status in connection.execute(select(runs.c.id, runs.c.status).where(runs.c.id.in_(run_ids))):
                if status in FINAL:
                    raise RunIsOver(f"run {other} is {status}")
        case run_writes.ReplacePlan():
            _replace_plan(connection, run, write)
        case run_writes.NoteTools(tools):
            connection.execute(delete(run_tools).where(run_tools.c.run_id == run.id))
            connection.execute(insert(run_tools).values(run_id=run.id, tools=list(tools)))
        case run_writes.BeginModelCall(call):
            begin_model_call(connection, run.id, run.generation, call)
        case run_writes.EndModelCall(key, status, totals, response, error, _):
            end_model_call(connection, run.id, key, status, totals, response=response, error=error)
        case run_writes.PlanAnew():
            plan_anew(connection, run.id)
        case run_writes.OpenBudget(tier, limits):
            open_budget(connection, run.spender(tier), limits)
        case run_writes.ReserveBudget(tier, reservation_id, step_id, amounts):
            reserve(connection, run.spender(tier), reservation_id, step_id, amounts)
        case run_writes.SettleBudget(tier, reservation_id, spent):
            settle(connection, run.spender(tier), reservation_id, spent)
        case run_writes.ReleaseBudget(tier, reservation_id):
            release(connection, run.spender(tier), reservation_id)
        case run_writes.SettleLostBudget(tier):
            settle_lost(connection, run.spender(tier))
        case run_writes.NoteFailure(attempt, error, traceback, worker_id):
            note_failure(connection, run.id, run.generation, attempt, error, traceback, worker_id)
        case run_writes.AddDeadLetter(reason, crashes):
            add_dead_letter(connection, run.id, reason, crashes)
        case run_writes.Ask(decision):
            add_decision(connection, decision)
        case run_writes.UnlessCancelled():
            if connection.scalar(_CANCEL_REQUESTED, {"of_run": run.id}) is not None:
                raise CancelRequested(f"run {run.id} is to be cancelled")
        case run_writes.UnlessDecided(decision_ids):
            for decision in decisions_of_run(connection, run.id):
                if decision.id in decision_ids and decision.status is not DecisionStatus.PENDING:
                    raise DecisionMade(f"decision {decision.id} of run {run.id} is {decision.status}")
        case run_writes.WaitForEvent(wait):
            made = add_wait(connection, wait)
            if made.status is not WaitStatus.OPEN:
                raise EventArrived(made)
        case _:
            raise TypeError(f"nothing carries out {write!r}")


def _add_steps(connection: Connection, run: RunningRun, records: Sequence[StepRecord]) -> None:
    if records:
        connection.execute(insert(steps), [{"run_id": run.id, **asdict(record)} for record in records])


def _add_child_run(connection: Connection, child: Run, events: Sequence[Event]) -> None:
    if connection.execute(select(runs.c.id).where(runs.c.id == child.id)).one_or_none() is None:
        connection.execute(insert(runs), values_of(child, RunStatus.QUEUED, None))
        add_events(connection, events, {child.id: child.user_id})


def _reopen_steps(connection: Connection, run: RunningRun, failed_effect: str | None) -> None:
    row = connection.execute(_LOCKED_RUN, {"of_run": run.id}).one()
    failed = select(steps.c.step_id, steps.c.result).where(
        steps.c.run_id == run.id, steps.c.status == StepStatus.FAILED.value
    )
    final = [step.step_id for step in connection.execute(failed) if (step.result or {}).get(FINAL_FAILURE)]
    again = update(steps).where(steps.c.run_id == run.id, to_be_done_again(run.id, row.plan, failed_effect))
    if final:
        again = again.where(steps.c.step_id.not_in(final))
    connection.execute(again.values(status=StepStatus.PENDING.value))


def _replace_plan(connection: Connection, run: RunningRun, write: run_writes.ReplacePlan) -> None:
    row = connection.execute(_LOCKED_RUN, {"of_run": run.id}).one()
    if row.plan_version >= write.version:
        return
    now = datetime.now(UTC)
    old = {"run_id": run.id, "version": row.plan_version, "plan": row.plan, "replaced_at": now, "reason": write.reason}
    connection.execute(insert(plan_versions), old)
    kept = [step.id for step in write.plan.steps]
    dropped = select(steps.c.step_id).where(
        steps.c.run_id == run.id,
        steps.c.step_id.not_in(kept),
        steps.c.status == StepStatus.PENDING.value,
    )
    connection.execute(
        update(decisions)
        .where(
            decisions.c.run_id == run.id,
            decisions.c.step_id.in_(dropped),
            decisions.c.status == DecisionStatus.PENDING.value,
        )
        .values(status=DecisionStatus.REJECTED.value, answer={"reason": "the plan was replaced"}, decided_at=now)
    )
    connection.execute(
        update(steps)
        .where(steps.c.run_id == run.id, steps.c.step_id.in_(dropped))
        .values(status=StepStatus.SKIPPED.value)
    )
    _add_steps(connection, run, write.journal)
    values: dict[str, Any] = {"plan": write.plan.model_dump(mode="json"), "plan_version": write.version}
    connection.execute(UPDATE_RUN, {"of_run": run.id, **values})
