"""A newer plan takes the place of one that failed, and what there was before can still be seen."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, text

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.plans import Step, parse_plan
from backplane.domain.runs import Run, RunError, RunStatus, new_run_id
from backplane.domain.steps import StepRecord, StepStatus, pending_steps
from backplane.domain.users import User
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from tests.submitted import new_run, plan, shell, together

OLD = parse_plan(plan(shell("a", "1"), shell("b", "2"), shell("c", "3")))
NEW = parse_plan(plan(shell("a", "1"), shell("d", "4")))
ADDED = [replace(record, position=7) for record in pending_steps(NEW) if record.step_id == "d"]
COMPLETED, FAILED, PENDING, SKIPPED = (
    StepStatus.COMPLETED,
    StepStatus.FAILED,
    StepStatus.PENDING,
    StepStatus.SKIPPED,
)


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    """Held, with `a` completed, `b` failed and a question about `c` open."""
    made = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(made.id, 1)
    asked = Decision(
        new_run_id(), made.id, user.id, "c", DecisionKind.APPROVAL, {}, DecisionStatus.PENDING, datetime.now(UTC)
    )
    await store.running_runs.write(
        made.id,
        1,
        together(
            lambda transaction: transaction.save_plan(OLD, pending_steps(OLD)),
            lambda transaction: transaction.end_step("a", COMPLETED, {}),
            lambda transaction: transaction.end_step("b", FAILED, {}, failed_tries=1),
            lambda transaction: transaction.ask(asked),
        ),
    )
    return made


def replan(transaction: RunTransaction) -> None:
    transaction.replace_plan(NEW, 2, "b failed", ADDED)


async def statuses(store: Store, run: Run) -> dict[str, StepStatus]:
    return {record.step_id: record.status for record in await store.journal.steps(run.id)}


async def test_the_old_plan_is_kept_its_open_steps_are_skipped_and_their_questions_closed(
    store: Store, run: Run
) -> None:
    await store.running_runs.write(run.id, 1, replan)
    after = await store.runs.find(run.id)
    assert after is not None
    assert (after.plan, after.plan_version) == (NEW.model_dump(mode="json"), 2)
    [kept] = await store.plans.replaced(run.id)
    assert (kept.version, kept.plan, kept.reason) == (1, OLD.model_dump(mode="json"), "b failed")
    assert await statuses(store, run) == {"a": COMPLETED, "b": FAILED, "c": SKIPPED, "d": PENDING}
    [decision] = await store.decisions.of_run(run.id)
    assert (decision.status, decision.answer) == (DecisionStatus.REJECTED, {"reason": "the plan was replaced"})


async def test_a_replacement_whose_commit_was_not_answered_can_be_written_again(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, replan)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.end_step("d", COMPLETED, {}))
    await store.running_runs.write(run.id, 1, replan)
    assert (await statuses(store, run))["d"] is COMPLETED
    assert len(await store.plans.replaced(run.id)) == 1


async def test_another_attempt_does_not_open_what_only_the_old_plan_had(store: Store, run: Run, user: User) -> None:
    error = RunError("command_failed", "it failed", step="d")
    await store.running_runs.write(
        run.id,
        1,
        together(
            replan,
            lambda transaction: transaction.end_step("d", FAILED, {}),
            lambda transaction: transaction.finish(RunStatus.FAILED, error, {"files": []}),
        ),
    )
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert await statuses(store, run) == {"a": COMPLETED, "b": FAILED, "c": SKIPPED, "d": PENDING}


async def test_a_step_below_another_one_is_added_once_and_its_failure_stays(store: Store, run: Run, user: User) -> None:
    below = StepRecord("c/0.1.1", 3, "turn 1", "shell", PENDING, 0, None, None, None, parent="c", round=0)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.add_step(below),
            lambda transaction: transaction.begin_step("c/0.1.1", 1),
            lambda transaction: transaction.add_step(below),
            lambda transaction: transaction.end_step("c/0.1.1", FAILED, {"exit_code": 1}),
            lambda transaction: transaction.suspend_step("c"),
            lambda transaction: transaction.finish(RunStatus.FAILED, None),
        ),
    )
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert await statuses(store, run) == {"a": COMPLETED, "b": PENDING, "c": PENDING, "c/0.1.1": FAILED}
    [_, failed, _, _] = await store.journal.steps(run.id)
    assert failed.failed_tries == 1


async def test_a_plan_lies_in_the_database_as_an_older_release_reads_it(store: Store, run: Run) -> None:
    def read(connection: Connection) -> str:
        query = text("SELECT plan FROM runs WHERE id = :id")
        return str(connection.execute(query, {"id": run.id}).scalar_one())

    kept = await store.database.read(read)
    assert "needs" not in kept
    assert "approval" not in kept
    # What the migration of older plans looks for, and takes out.
    old = Step(id="a", tool="shell", needs=()).model_dump(mode="json")
    assert '"needs":[],"timeout_seconds":' in json.dumps(old, separators=(",", ":"))
