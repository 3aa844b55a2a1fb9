"""Where steps, questions and model calls belong: rows that an older release wrote say the same as those of this one,
whether a migration has filled them or an older worker wrote them afterwards."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.model_calls import BeginningCall, CallKey
from backplane.domain.plans import parse_plan
from backplane.domain.runs import Run, RunError, RunStatus, new_run_id
from backplane.domain.steps import StepRecord, StepStatus, pending_steps
from backplane.domain.users import User
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from backplane.store.run_writes import BeginModelCall
from backplane.store.tables import decisions, model_calls, steps
from tests.databases import downgrade, upgrade
from tests.submitted import new_run, plan, shell

PLAN = parse_plan(plan(shell("a", "true"), shell("ab", "true", needs=[]), shell("v1.2_x", "true", needs=[])))
STEPS: list[tuple[str, str | None, int | None]] = [("a", None, None), ("ab", None, None), ("v1.2_x", None, None)]
STEPS += [("a/0.1.1", "a", 0), ("a/12.345.6", "a", 12), ("v1.2_x/3.1.2", "v1.2_x", 3)]
STEPS += [(f"{'n' * 64}/123456789.1.1", "n" * 64, 123_456_789)]
"""Each id with the step above and its round."""
CALLS = [
    ("", "plan", 1, CallKey("", "plan", 1)),
    ("", "repair", 100, CallKey("", "repair", 100)),
    ("", "summary", 4_711, CallKey("", "summary", 4_711)),
    ("", "replan", 1, CallKey("", "replan", 1, 0, 1)),
    ("", "replan", 100, CallKey("", "replan", 100, 0, 1)),
    ("", "replan", 101, CallKey("", "replan", 1, 1, 1)),
    ("", "replan", 99_901, CallKey("", "replan", 1, 999, 1)),
    ("", "replan", 100_000, CallKey("", "replan", 100, 999, 1)),
    ("", "replan", 100_001, CallKey("", "replan", 1, 0, 2)),
    ("", "replan", 1_200_203, CallKey("", "replan", 3, 2, 13)),
    ("a/0", "turn", 1, CallKey("a", "turn", 1)),
    ("a/12", "turn", 345, CallKey("a", "turn", 345, 12)),
    ("v1.2_x/3", "turn", 101, CallKey("v1.2_x", "turn", 101, 3)),
]
"""Each primary key of an older release with the key of this one."""

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _write_old_rows(connection: Connection, run: Run) -> None:
    """As a release before 0014 writes them."""
    connection.execute(insert(steps), [_old_step(run, at, name) for at, (name, _, _) in enumerate(STEPS)])
    connection.execute(insert(model_calls), [_old_call(run, *call[:3]) for call in CALLS])
    for step_id, _, _ in STEPS:
        values = {"id": new_run_id(), "run_id": run.id, "user_id": run.user_id, "step_id": step_id, "created_at": NOON}
        connection.execute(insert(decisions).values(**values, kind="question", asked={}, status="pending"))


def _old_step(run: Run, position: int, step_id: str) -> dict[str, Any]:
    values = {"run_id": run.id, "step_id": step_id, "position": position, "title": "", "tool": "shell"}
    return {**values, "status": "completed", "tries": 1, "finished_at": NOON}


def _old_call(run: Run, step_id: str, purpose: str, number: int) -> dict[str, Any]:
    values = {"run_id": run.id, "step_id": step_id, "purpose": purpose, "number": number, "id": new_run_id()}
    values |= {"generation": 1, "status": "completed", "server": "s", "model": "m", "request": {}, "response": {}}
    return {**values, "request_digest": "d", "started_at": NOON, "finished_at": NOON}


async def by_the_migration(store: Store, run: Run) -> None:
    def write(connection: Connection) -> None:
        downgrade(connection, "0013")
        _write_old_rows(connection, run)
        upgrade(connection, "head")

    await store.database.write(write)


async def by_an_older_worker(store: Store, run: Run) -> None:
    await store.database.write(lambda connection: _write_old_rows(connection, run))


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    created = await store.runs.create(new_run(user, given_plan=PLAN.model_dump(mode="json")), start=True)
    assert await store.running_runs.take(created.id, 1)
    await store.running_runs.write(created.id, 1, lambda held: held.save_plan(PLAN, ()))
    return created


@pytest.fixture(params=[by_the_migration, by_an_older_worker], ids=["filled", "left empty"])
async def old_rows(request: pytest.FixtureRequest, store: Store, run: Run) -> str:
    await request.param(store, run)
    return str(request.param.__name__)


async def test_old_rows_say_where_they_belong(store: Store, run: Run, old_rows: str) -> None:
    found = [(record.step_id, record.parent, record.round) for record in await store.journal.steps(run.id)]
    assert found == STEPS
    asked = {decision.step_id: decision.parent for decision in await store.decisions.of_run(run.id)}
    assert asked == {step_id: parent for step_id, parent, _ in STEPS}
    assert {call.key for call in await store.model_calls.of_run(run.id)} == {key for *_, key in CALLS}


async def test_the_migration_fills_the_columns(store: Store, run: Run) -> None:
    await by_the_migration(store, run)

    def read(connection: Connection) -> tuple[Any, ...]:
        of_steps = select(steps.c.step_id, steps.c.parent, steps.c.round).order_by(steps.c.position)
        columns = ("step", "purpose", "ordinal", "round", "plan_version")
        of_calls = select(*(model_calls.c[name] for name in columns))
        asked = select(decisions.c.step_id, decisions.c.parent)
        return tuple([tuple(row) for row in connection.execute(query)] for query in (of_steps, of_calls, asked))

    of_steps, of_calls, asked = await store.database.read(read)
    assert of_steps == STEPS
    assert set(of_calls) == {tuple(key) for *_, key in CALLS}
    assert set(asked) == {(step_id, parent) for step_id, parent, _ in STEPS}


@pytest.mark.parametrize(("step_id", "purpose", "number", "key"), CALLS)
def test_a_call_has_the_name_that_older_releases_give_it(step_id: str, purpose: str, number: int, key: CallKey) -> None:
    assert (key.step_id, key.purpose, key.number) == (step_id, purpose, number)


async def test_an_old_call_is_found_and_made_again_in_its_place(store: Store, run: Run, old_rows: str) -> None:
    for *_, key in CALLS:
        found = await store.model_calls.find(run.id, key)
        assert found is not None
        assert found.key == key
        again = BeginModelCall(BeginningCall(key, new_run_id(), "s", "m", {}, "other"))
        await store.running_runs.commit(run.id, 1, [again])
    calls = await store.model_calls.of_run(run.id)
    assert {(call.key, call.request_digest) for call in calls} == {(key, "other") for *_, key in CALLS}


async def test_a_step_that_is_done_again_takes_old_rows_below_it_with_it(
    store: Store, user: User, run: Run, old_rows: str
) -> None:
    await store.running_runs.write(run.id, 1, lambda held: held.finish(RunStatus.FAILED, RunError("failed", "no")))
    await store.derived_runs.retry_from(user.id, run.id, "a")
    left = {step_id for step_id, *_ in STEPS} - {"a/0.1.1", "a/12.345.6"}
    assert {record.step_id for record in await store.journal.steps(run.id)} == left
    assert {decision.step_id for decision in await store.decisions.of_run(run.id)} == left - {"a"}
    kept = {key for *_, key in CALLS if key.step != "a" and key.purpose != "summary"}
    assert {call.key for call in await store.model_calls.of_run(run.id)} == kept


async def test_a_step_below_that_was_skipped_is_open_again_for_the_next_attempt(
    store: Store, run: Run, old_rows: str
) -> None:
    skipped = update(steps).where(steps.c.run_id == run.id, steps.c.step_id.in_(["a", "a/0.1.1"]))
    await store.database.write(lambda connection: connection.execute(skipped.values(status="skipped")))
    await store.running_runs.write(run.id, 1, lambda held: held.reopen_steps())
    open_again = [record.step_id for record in await store.journal.steps(run.id) if record.status is StepStatus.PENDING]
    assert open_again == ["a", "a/0.1.1"]


async def test_new_rows_are_found_by_the_names_that_older_releases_know(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    below = StepRecord("a/12.345.6", 9, "", "shell", StepStatus.PENDING, 0, None, None, None, parent="a", round=12)
    asks, pending = DecisionKind.QUESTION, DecisionStatus.PENDING
    decision = Decision(new_run_id(), run.id, user.id, below.step_id, asks, {}, pending, NOON, parent="a")

    def write(held: RunTransaction) -> None:
        held.save_plan(PLAN, pending_steps(PLAN))
        held.add_step(below)
        held.ask(decision)
        for *_, key in CALLS:
            held.begin_model_call(BeginningCall(key, new_run_id(), "s", "m", {}, "d"))

    await store.running_runs.write(run.id, 1, write)

    def read(connection: Connection) -> tuple[Any, ...]:
        of_calls = select(*(model_calls.c[name] for name in ("step_id", "purpose", "number", *CallKey._fields)))
        of_steps = select(steps.c.step_id, steps.c.parent, steps.c.round).order_by(steps.c.position)
        return tuple({tuple(row) for row in connection.execute(query)} for query in (of_calls, of_steps))

    of_calls, of_steps = await store.database.read(read)
    assert {row[:3] for row in of_calls} == {call[:3] for call in CALLS}
    assert {row[3:] for row in of_calls} == {tuple(key) for *_, key in CALLS}
    assert of_steps == {*STEPS[:3], ("a/12.345.6", "a", 12)}
    assert [(one.step_id, one.parent) for one in await store.decisions.of_run(run.id)] == [("a/12.345.6", "a")]
