"""Forks, replays, and runs that go back to one of their own steps: which rows they begin with."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.derived_runs import NewFork
from backplane.domain.events import EventType
from backplane.domain.plans import Plan, parse_plan
from backplane.domain.runs import Priority, Run, RunStatus, new_run_id
from backplane.domain.steps import StepStatus, pending_steps
from backplane.domain.users import User
from backplane.errors import (
    Conflict,
    FilesGone,
    IdempotencyKeyReused,
    InvalidInput,
    InvalidPlan,
    NotFound,
    TransitionNotAllowed,
)
from backplane.store import Store
from backplane.store.tables import decisions, model_calls, runs, steps
from tests.event_data import data_of
from tests.submitted import new_run, plan, shell

PLAN = plan(
    shell("a", "1"),
    shell("b", "2", needs=["a"]),
    shell("c", "3", needs=[]),
    {"id": "d", "tool": "shell", "arguments": {"script": "echo ${steps.b.output}"}},
)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DONE, PENDING, FAILED = StepStatus.COMPLETED, StepStatus.PENDING, StepStatus.FAILED


async def change(store: Store, statement: Any) -> None:
    await store.database.write(lambda connection: connection.execute(statement))


async def ended(
    store: Store, run: Run, step_id: str, minute: int, files: Mapping[str, Any] | None = None, status: StepStatus = DONE
) -> None:
    values = {
        "status": status.value,
        "tries": 1,
        "finished_at": NOON + timedelta(minutes=minute),
        "result": {"exit_code": 0, "output": step_id},
        "files": files,
    }
    await change(store, update(steps).where(steps.c.run_id == run.id, steps.c.step_id == step_id).values(values))


@pytest.fixture
async def source(store: Store, user: User) -> Run:
    """Completed: a, then c, which had failed in the middle of b, then b; d last. b had a step within."""
    made = new_run(user, given_plan=PLAN, agent="helper", model="s/m", metadata={"k": 1}, budget={"usd": 2.0})
    await store.runs.create(made, start=True)
    await store.running_runs.take(made.id, 1)
    journal = pending_steps(parse_plan(PLAN))
    await store.running_runs.write(made.id, 1, lambda transaction: transaction.save_plan(parse_plan(PLAN), journal))
    await ended(store, made, "a", 1, {"a.txt": "e1"})
    await ended(store, made, "c", 2, {"a.txt": None}, FAILED)
    await ended(store, made, "b", 3, {"b.txt": "e3"})
    await ended(store, made, "d", 4)
    within = {
        "run_id": made.id, "step_id": "b/1.1", "position": 5, "title": "", "tool": "shell", "status": "completed",
        "tries": 1, "finished_at": NOON + timedelta(minutes=2.5),
    }  # fmt: skip
    await change(store, insert(steps).values(within))
    await store.running_runs.write(made.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    return await store.runs.get(user.id, made.id)


async def fork(store: Store, source: Run, step: str | None, *, start: bool = False, **values: Any) -> Run:
    new = NewFork(new_run_id(), Priority.NORMAL, step, **values)
    run, events = await store.derived_runs.fork(source.user_id, source.id, new, start=start)
    assert await store.events.after(run.id, 0, 10) == events
    return run


async def journal_of(store: Store, run: Run) -> dict[str, tuple[StepStatus, Any]]:
    return {
        record.step_id: (record.status, record.files) for record in await store.journal.steps(run.id, with_files=True)
    }


# --- forks ---


async def test_a_fork_has_what_had_ended_with_its_step_and_the_rest_before_it(store: Store, source: Run) -> None:
    run = await fork(store, source, "b")
    assert await journal_of(store, run) == {
        "a": (DONE, {"a.txt": "e1"}),
        "b": (DONE, {"b.txt": "e3"}),
        "b/1.1": (DONE, {"a.txt": None}),
        "c": (PENDING, None),
        "d": (PENDING, None),
    }
    kept = await store.runs.get(source.user_id, run.id)
    assert (kept.status, kept.agent, kept.model, kept.metadata) == (RunStatus.CREATED, "helper", "s/m", {"k": 1})
    assert (kept.budget, kept.plan) == ({"usd": 2.0}, Plan.model_validate(PLAN).model_dump(mode="json"))
    assert kept.origin == {"kind": "fork", "run_id": source.id, "step": "b"}
    assert kept.restore == {"run_id": source.id, "steps": []}
    assert kept.started_at is None


async def test_a_fork_has_the_attributes_of_its_steps_and_those_of_a_failed_one_before(
    store: Store, source: Run
) -> None:
    for step_id in ("a", "c", "b", "d"):
        noted = {f"{step_id}/": {"time": 1}, "日本": None}
        await change(
            store, update(steps).where(steps.c.run_id == source.id, steps.c.step_id == step_id).values(attributes=noted)
        )
    run = await fork(store, source, "b")
    found = {record.step_id: record.attributes for record in await store.journal.steps(run.id, with_files=True)}
    of_a, of_c, of_b = ({f"{step_id}/": {"time": 1}, "日本": None} for step_id in ("a", "c", "b"))
    assert found == {"a": of_a, "b/1.1": of_c, "b": of_b, "c": None, "d": None}


async def test_the_journal_is_read_without_what_changed_in_the_workspace_unless_it_is_asked_for(
    store: Store, source: Run
) -> None:
    [first, *_] = await store.journal.steps(source.id)
    assert (first.step_id, first.files, first.attributes) == ("a", None, None)
    [first, *_] = await store.journal.steps(source.id, with_files=True)
    assert first.files == {"a.txt": "e1"}


async def test_a_fork_says_where_it_comes_from_and_its_plan(store: Store, source: Run) -> None:
    run = await fork(store, source, "a", start=True)
    events = await store.events.after(run.id, 0, 10)
    assert [event.type for event in events] == ["status", "log", "plan", "status"]
    assert [event.id for event in events] == [1, 2, 3, 4]
    assert source.id in data_of(events[1])["line"]
    assert run.status is RunStatus.QUEUED


async def test_a_fork_that_was_only_created_is_started_like_any_run(store: Store, source: Run) -> None:
    run = await fork(store, source, "a")
    started, events = await store.runs.start(run.user_id, run.id)
    assert started.status is RunStatus.QUEUED
    assert [(event.id, event.type) for event in events] == [(4, EventType.STATUS)]
    assert await store.events.last_id(run.id) == 4


async def test_a_fork_from_the_beginning_does_everything_again(store: Store, source: Run) -> None:
    run = await store.runs.get(source.user_id, (await fork(store, source, None)).id)
    assert (run.plan, await store.journal.steps(run.id, with_files=True)) == (None, [])
    assert run.given_plan == source.plan
    anew = await fork(store, source, None, prompt="something else", plan=parse_plan(plan(shell("x", "1"))))
    assert (anew.prompt, anew.given_plan and [step["id"] for step in anew.given_plan["steps"]]) == (
        "something else",
        ["x"],
    )


async def test_a_fork_with_another_prompt_and_no_plan_is_planned_anew(store: Store, user: User, source: Run) -> None:
    await change(store, update(runs).where(runs.c.id == source.id).values(given_plan=None))
    assert (await fork(store, source, None, prompt="something else")).given_plan is None
    assert (await fork(store, source, None)).given_plan == source.plan


async def test_a_fork_with_a_plan_of_its_own_must_have_the_steps_that_are_done(store: Store, source: Run) -> None:
    other = parse_plan(plan(shell("a", "1"), shell("new", "4", needs=["a"])))
    assert await journal_of(store, await fork(store, source, "a", plan=other)) == {
        "a": (DONE, {"a.txt": "e1"}),
        "new": (PENDING, None),
    }
    for wrong in (plan(shell("new", "4")), plan(shell("a", "changed"))):
        with pytest.raises(InvalidPlan, match="'a' was carried out already"):
            await fork(store, source, "a", plan=parse_plan(wrong))


@pytest.mark.parametrize("step", ["c", "nothing", "b/9.9"])
async def test_a_fork_from_a_step_that_was_not_completed_names_those_that_were(
    store: Store, source: Run, step: str
) -> None:
    with pytest.raises(Conflict, match="a, b, d"):
        await fork(store, source, step)


async def test_a_fork_of_a_fork_that_has_no_files_yet_gets_them_from_the_first(store: Store, source: Run) -> None:
    first = await fork(store, source, "b")
    second = await fork(store, first, "a")
    assert (second.restore, second.origin) == (
        {"run_id": source.id, "steps": []},
        {"kind": "fork", "run_id": first.id, "step": "a"},
    )


async def test_the_same_idempotency_key_makes_one_fork(store: Store, source: Run) -> None:
    async def forked(digest: str) -> tuple[Run, Any]:
        new = NewFork(new_run_id(), Priority.NORMAL, "a")
        return await store.derived_runs.fork(source.user_id, source.id, new, start=False, idempotency=("key", digest))

    first, _ = await forked("digest")
    again, events = await forked("digest")
    assert (again.id, events) == (first.id, [])
    with pytest.raises(IdempotencyKeyReused):
        await forked("another")


async def test_nothing_is_made_of_another_user_s_run_or_of_one_without_files(
    store: Store, source: Run, stranger: User
) -> None:
    async def all_refuse(user_id: str, error: type[Exception]) -> None:
        new = NewFork(new_run_id(), Priority.NORMAL, "a")
        with pytest.raises(error):
            await store.derived_runs.fork(user_id, source.id, new, start=True)
        with pytest.raises(error):
            await store.derived_runs.replay(user_id, source.id, new_run_id(), Priority.NORMAL)
        with pytest.raises(error):
            await store.derived_runs.retry_from(user_id, source.id, "a")

    await all_refuse(stranger.id, NotFound)
    await change(store, update(runs).values(files_expired_at=NOON))
    await all_refuse(source.user_id, FilesGone)
    assert [run.id for run in await store.runs.page(source.user_id)] == [source.id]


# --- replays ---


async def test_a_replay_begins_like_its_source_with_its_decisions(store: Store, source: Run) -> None:
    decided = Decision(
        new_run_id(), source.id, source.user_id, "a", DecisionKind.QUESTION, {"question": "?"},
        DecisionStatus.ANSWERED, NOON, {"text": "yes"}, NOON, source.user_id,
    )  # fmt: skip
    open_one = {
        "id": new_run_id(), "run_id": source.id, "user_id": source.user_id, "step_id": "b", "kind": "approval",
        "asked": {}, "status": "pending", "created_at": NOON,
    }  # fmt: skip
    await store.database.write(
        lambda connection: connection.execute(
            insert(decisions), [{**open_one, "id": decided.id, "step_id": "a", "kind": "question",
                                 "asked": decided.asked, "status": "answered", "answer": decided.answer}]
        )
    )  # fmt: skip
    await change(store, insert(decisions).values(open_one))
    run, events = await store.derived_runs.replay(source.user_id, source.id, new_run_id(), Priority.HIGH)
    assert (run.status, run.priority, run.prompt) == (RunStatus.QUEUED, Priority.HIGH, source.prompt)
    assert run.origin == {"kind": "replay", "run_id": source.id, "execute": False}
    assert run.restore == {"run_id": source.id, "steps": []}
    assert (run.plan, run.given_plan, await store.journal.steps(run.id, with_files=True)) == (
        None,
        source.given_plan,
        [],
    )
    [copied] = await store.decisions.of_run(run.id)
    assert (copied.step_id, copied.status, copied.answer) == ("a", DecisionStatus.ANSWERED, {"text": "yes"})
    assert copied.id != decided.id
    assert [event.type for event in events] == ["status", "log", "status"]


async def test_a_replay_of_a_fork_begins_with_what_the_fork_began_with(store: Store, source: Run) -> None:
    forked = await fork(store, source, "a")
    await change(store, update(runs).where(runs.c.id == forked.id).values(status="completed"))
    await ended(store, forked, "c", 10**7)
    run, _ = await store.derived_runs.replay(source.user_id, forked.id, new_run_id(), Priority.NORMAL)
    assert {step_id for step_id, (status, _) in (await journal_of(store, run)).items() if status is DONE} == {"a"}


async def test_a_run_that_is_not_over_is_not_replayed(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    with pytest.raises(TransitionNotAllowed, match="queued"):
        await store.derived_runs.replay(user.id, run.id, new_run_id(), Priority.NORMAL)


# --- retry from a step ---


async def test_a_step_and_all_that_require_it_are_to_be_done_again(store: Store, source: Run) -> None:
    run, events = await store.derived_runs.retry_from(source.user_id, source.id, "b")
    assert await journal_of(store, source) == {
        "a": (DONE, {"a.txt": "e1"}),
        "b": (PENDING, None),
        "c": (PENDING, {"a.txt": None}),
        "d": (PENDING, None),
    }
    assert (run.status, run.restore, run.result) == (RunStatus.QUEUED, {"run_id": source.id, "steps": []}, None)
    assert (await store.runs.get(source.user_id, source.id)).restore == run.restore
    assert [event.type for event in events] == ["status"]
    assert await store.running_runs.take(source.id, 2)


async def test_calls_and_decisions_of_those_steps_are_forgotten_and_no_others(store: Store, source: Run) -> None:
    for step_id in ("a", "b", "b/1.1", "bb", ""):
        call: dict[str, Any] = {
            "run_id": source.id, "step_id": step_id, "purpose": "turn", "number": 1, "id": new_run_id(),
            "generation": 1, "status": "completed", "server": "s", "model": "m", "request": {}, "request_digest": "",
            "started_at": NOON,
        }  # fmt: skip
        asked: dict[str, Any] = {
            "id": new_run_id(), "run_id": source.id, "user_id": source.user_id, "step_id": step_id,
            "kind": "approval", "asked": {}, "status": "approved", "created_at": NOON,
        }  # fmt: skip
        await change(store, insert(model_calls).values(call))
        await change(store, insert(decisions).values(asked))
    await store.derived_runs.retry_from(source.user_id, source.id, "b")
    assert {call.key.step for call in await store.model_calls.of_run(source.id)} == {"a", "bb", ""}
    assert {decision.step_id for decision in await store.decisions.of_run(source.id)} == {"a", "bb", ""}


async def uncertain(store: Store, source: Run, *step_ids: str) -> None:
    await change(
        store,
        update(steps)
        .where(steps.c.run_id == source.id, steps.c.step_id.in_(step_ids))
        .values(status=StepStatus.UNCERTAIN.value),
    )


async def test_of_another_uncertain_step_it_has_to_be_said_what_becomes_of_it(store: Store, source: Run) -> None:
    await uncertain(store, source, "a")
    before = await journal_of(store, source)
    with pytest.raises(Conflict, match=r"step 'a'.*uncertain_step"):
        await store.derived_runs.retry_from(source.user_id, source.id, "b")
    assert await journal_of(store, source) == before
    await store.derived_runs.retry_from(source.user_id, source.id, "b", uncertain_step_is_done=True)
    assert (await journal_of(store, source))["a"][0] is DONE


UNCERTAIN, STARTED, CHANGING = StepStatus.UNCERTAIN, StepStatus.STARTED, StepStatus.CHANGING
FROM_A_STEP: dict[str, tuple[str, str, StepStatus, bool | None, type[Exception] | StepStatus]] = {
    # from this step on, with this one in this state: what a person says of it, and what becomes of that step
    "itself, nothing": ("b", "b", UNCERTAIN, None, PENDING),
    "itself, repeat": ("b", "b", UNCERTAIN, False, PENDING),
    "itself, done": ("b", "b", UNCERTAIN, True, InvalidInput),
    "a later one, nothing": ("a", "b", UNCERTAIN, None, Conflict),
    "a later one, repeat": ("a", "b", UNCERTAIN, False, PENDING),
    "a later one, done": ("a", "b", UNCERTAIN, True, InvalidInput),
    "one below, nothing": ("b", "b/1.1", UNCERTAIN, None, Conflict),
    "one below, done": ("b", "b/1.1", UNCERTAIN, True, InvalidInput),
    "one below a later one, nothing": ("a", "b/1.1", UNCERTAIN, None, Conflict),
    "another, nothing": ("b", "a", UNCERTAIN, None, Conflict),
    "another, repeat": ("b", "a", UNCERTAIN, False, PENDING),
    "another, done": ("b", "a", UNCERTAIN, True, DONE),
    "itself cut off in changes, nothing": ("b", "b", CHANGING, None, PENDING),
    "a later one cut off in changes, nothing": ("a", "b", CHANGING, None, Conflict),
    "a later one cut off in changes, repeat": ("a", "b", CHANGING, False, PENDING),
    "a later one cut off in changes, done": ("a", "b", CHANGING, True, InvalidInput),
    "one below cut off in changes, nothing": ("b", "b/1.1", CHANGING, None, Conflict),
    "a later one cut off before, nothing": ("a", "b", STARTED, None, STARTED),
    "a later one cut off before, repeat": ("a", "b", STARTED, False, PENDING),
    "itself cut off before, nothing": ("b", "b", STARTED, None, PENDING),
}


@pytest.mark.parametrize(("from_step", "step", "status", "is_done", "then"), FROM_A_STEP.values(), ids=FROM_A_STEP)
async def test_a_step_that_may_have_happened_is_done_again_from_a_step_only_when_a_person_says_so(
    store: Store,
    source: Run,
    from_step: str,
    step: str,
    status: StepStatus,
    is_done: bool | None,
    then: type[Exception] | StepStatus,
) -> None:
    await change(store, update(steps).where(steps.c.run_id == source.id, steps.c.step_id == step).values(status=status))
    before = await journal_of(store, source)
    assert before[step][0] is status
    retry = store.derived_runs.retry_from(source.user_id, source.id, from_step, uncertain_step_is_done=is_done)
    if isinstance(then, StepStatus):
        await retry
        assert (await journal_of(store, source))[step][0] is then
    else:
        with pytest.raises(then, match=repr(step)):
            await retry
        assert await journal_of(store, source) == before


async def test_a_completed_run_is_not_retried_without_a_step(store: Store, source: Run) -> None:
    with pytest.raises(TransitionNotAllowed, match="name a step"):
        await store.runs.retry(source.user_id, source.id, uncertain_step_is_done=False)


@pytest.mark.parametrize("status", ["created", "queued", "running", "cancelled"])
async def test_a_run_in_another_state_does_not_go_back(store: Store, source: Run, status: str) -> None:
    await change(store, update(runs).values(status=status))
    with pytest.raises(TransitionNotAllowed):
        await store.derived_runs.retry_from(source.user_id, source.id, "b")


async def test_a_step_that_is_not_there_or_was_never_begun_is_refused(store: Store, source: Run) -> None:
    with pytest.raises(NotFound, match="no step 'x'"):
        await store.derived_runs.retry_from(source.user_id, source.id, "x")
    await change(store, update(steps).values(tries=0))
    with pytest.raises(Conflict, match="not been begun"):
        await store.derived_runs.retry_from(source.user_id, source.id, "b")
