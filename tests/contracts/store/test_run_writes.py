"""Every write of a running run is carried out by the ordinary transaction; which of them one statement can hold."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backplane.domain.budgets import Amounts
from backplane.domain.bus import EventWait
from backplane.domain.dead_letters import DeadReason
from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.events import EventType, encode
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.plans import parse_plan
from backplane.domain.runs import RunError, new_run_id
from backplane.domain.steps import StepRecord, StepStatus, pending_steps
from backplane.domain.users import User
from backplane.store import Store, run_writes
from backplane.store.in_transaction import RunningRun, carry_out
from backplane.store.one_statement import as_one_statement
from backplane.store.run_writes import RunWrite
from tests.agents import spawned
from tests.submitted import new_run, plan, shell

PLAN = parse_plan(plan(shell("a", "true"), shell("b", "true")))
NEWER = parse_plan(plan(shell("a", "true"), shell("c", "true")))
KEY = CallKey("a", "turn", 1)
FOR_ONE_STATEMENT = frozenset(
    {
        run_writes.AddEvents,
        run_writes.AddStep,
        run_writes.ChangeRun,
        run_writes.ChangeStep,
        run_writes.NotifyWebhook,
        run_writes.SavePlan,
        run_writes.SettleAll,
    }
)


def one_of_each(run_id: str, user_id: str, agent_id: str) -> list[RunWrite]:
    """In an order in which a run may see them."""
    now, error = datetime.now(UTC), RunError("failed", "no")
    below = StepRecord("a/1.1", 0, "below", "shell", StepStatus.PENDING, 0, None, None, None)
    decision = Decision(
        new_run_id(), run_id, user_id, "b", DecisionKind.QUESTION, {"question": "?"}, DecisionStatus.PENDING, now
    )
    call = BeginningCall(KEY, "call-1", "server", "model", {}, "digest")
    child = new_run(cast(User, SimpleNamespace(id=user_id)))
    new = tuple(record for record in pending_steps(NEWER) if record.step_id == "c")
    return [
        run_writes.UnlessCancelled(),
        run_writes.UnlessDecided(frozenset({decision.id})),
        run_writes.AddEvents((encode(run_id, 3, EventType.LOG, {"line": "x"}),)),
        run_writes.NoteTools(({"name": "tool"},)),
        run_writes.SavePlan(PLAN, tuple(pending_steps(PLAN))),
        run_writes.ChangeStep("a", {"status": StepStatus.STARTED.value, "tries": 1, "started_at": now}),
        run_writes.AddStep(below),
        run_writes.OpenBudget("standard", {}),
        run_writes.SettleLostBudget("standard"),
        run_writes.ReserveBudget("standard", "r", "a", Amounts(steps=1)),
        run_writes.SettleBudget("standard", "r", Amounts(steps=1)),
        run_writes.ReleaseBudget("standard", "r"),
        run_writes.BeginModelCall(call),
        run_writes.EndModelCall(KEY, CallStatus.COMPLETED, CallTotals(1, 1, 1), {}, None),
        run_writes.PlanAnew(),
        run_writes.Ask(decision),
        run_writes.WaitForEvent(EventWait(new_run_id(), run_id, user_id, "b", "order.*", None, 0, None)),
        run_writes.ReplacePlan(NEWER, 2, "because", new),
        run_writes.ReopenSteps(),
        run_writes.SkipPendingSteps(),
        run_writes.NoteFailure(1, error, "", "worker-1"),
        run_writes.AddDeadLetter(DeadReason.POISON, 3),
        run_writes.ChangeRun({"status": "failed", "finished_at": now}),
        run_writes.SettleAll(),
        run_writes.NotifyWebhook(),
        run_writes.AddChildRun(child, (encode(child.id, 1, EventType.STATUS, {"status": "queued"}),)),
        run_writes.UnlessOver(frozenset({child.id})),
        run_writes.WakeParent(new_run_id()),
        run_writes.SendMessage("a", new_run(cast(User, SimpleNamespace(id=user_id)), agent_id=agent_id), 10),
        run_writes.EndTurn(agent_id, {"state": {}}),
    ]


def test_each_kind_of_write_is_in_the_list() -> None:
    kinds = {kind for kind in vars(run_writes).values() if isinstance(kind, type) and issubclass(kind, RunWrite)}
    assert {type(write) for write in one_of_each("run", "user", "agent")} == kinds - {RunWrite}


async def test_each_kind_of_write_is_carried_out(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    agent = await spawned(store, user)
    await store.running_runs.commit(run.id, 1, one_of_each(run.id, user.id, agent.id))
    assert {record.step_id: record.status.value for record in await store.journal.steps(run.id)} == {
        "a": "started",
        "a/1.1": "skipped",
        "b": "skipped",
        "c": "skipped",
    }
    with pytest.raises(TypeError, match="nothing carries out"):
        await store.database.write(
            lambda connection: carry_out(connection, RunningRun(run.id, user.id, 1, has_webhook=False), [RunWrite()])
        )


@pytest.mark.parametrize("write", one_of_each("run", "user", "agent"), ids=lambda write: type(write).__name__)
def test_what_needs_no_answer_first_is_one_statement(write: RunWrite) -> None:
    assert (as_one_statement("run", 1, [write]) is not None) == (type(write) in FOR_ONE_STATEMENT)


@pytest.mark.parametrize(
    ("writes", "is_one"),
    [
        ([], True),
        ([run_writes.SavePlan(PLAN, ()), run_writes.ChangeRun({"status": "failed"})], False),
        ([run_writes.SettleAll(), run_writes.UnlessCancelled()], False),
    ],
    ids=["nothing", "the run's row twice", "one that asks first"],
)
def test_of_several_writes_each_must_fit_and_the_row_is_changed_once(writes: list[RunWrite], is_one: bool) -> None:
    assert (as_one_statement("run", 1, writes) is not None) == is_one


def test_a_step_that_the_statement_adds_is_added_as_it_is_changed() -> None:
    begun = run_writes.ChangeStep("a", {"status": StepStatus.STARTED.value, "tries": 1})
    found = as_one_statement("run", 1, [run_writes.SavePlan(PLAN, tuple(pending_steps(PLAN))), begun])
    assert found is not None
    values: dict[str, Any] = found[1]
    assert (values["new_step_id"], values["new_status"]) == (["a", "b"], ["started", "pending"])


def test_a_step_of_no_plan_is_added_as_it_is_changed_and_not_changed_behind_that() -> None:
    record = StepRecord("1.a", 0, "", "run.step", StepStatus.PENDING, 0, None, None, None, ordinal=1, request="digest")
    begun = run_writes.ChangeStep("1.a", {"status": StepStatus.STARTED.value, "tries": 1})
    found = as_one_statement("run", 1, [run_writes.AddStep(record), begun])
    assert found is not None
    statement, values = found
    assert (values["added0_step_id"], values["added0_status"], values["added0_ordinal"]) == ("1.a", "started", 1)
    assert "UPDATE steps" not in statement


async def test_a_step_of_no_plan_is_added_once_however_often_it_is_written(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    record = StepRecord("1.a", 0, "t", "run.step", StepStatus.PENDING, 0, None, None, None, ordinal=1, request="digest")
    end = run_writes.ChangeStep("1.a", {"status": StepStatus.COMPLETED.value, "result": {"value": [1, "\0"]}})
    for _ in range(2):
        await store.running_runs.commit(run.id, 1, [run_writes.AddStep(record), end])
    [kept] = await store.journal.steps(run.id)
    assert (kept.status, kept.result, kept.ordinal, kept.request) == (
        StepStatus.COMPLETED,
        {"value": [1, "\0"]},
        1,
        "digest",
    )
