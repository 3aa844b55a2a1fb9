"""Runs as their users act on them."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from backplane.domain.events import Event
from backplane.domain.plans import parse_plan
from backplane.domain.runs import Priority, Run, RunError, RunStatus
from backplane.domain.steps import FINAL_FAILURE, StepStatus, pending_steps
from backplane.domain.users import User
from backplane.errors import Conflict, IdempotencyKeyReused, NotFound, TransitionNotAllowed
from backplane.store import Store
from tests.event_data import data_of
from tests.submitted import new_run, plan, shell, together

ERROR = RunError("command_failed", "it failed", step="a")


async def running_run(store: Store, user: User) -> Run:
    """A run that a worker holds in generation 1, with the steps a, b and c."""
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    made = parse_plan(plan(shell("a", "true"), shell("b", "true"), shell("c", "true")))
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.save_plan(made, pending_steps(made)))
    return run


def statuses_of(events: list[Event]) -> list[tuple[int, str, Any]]:
    return [(event.id, event.type.value, data_of(event).get("status")) for event in events]


# --- create ---


async def test_a_run_is_stored_as_it_was_given(store: Store, user: User) -> None:
    run = new_run(
        user, prompt="π\u0001 'quoted'", metadata={"a": [1, None, "\0"]}, given_plan=plan(), priority=Priority.HIGH
    )
    assert await store.runs.create(run) == run
    assert await store.runs.get(user.id, run.id) == run


async def test_a_new_run_has_the_event_of_its_making(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    assert statuses_of(await store.events.after(run.id, 0, 10)) == [(1, "status", "created")]


async def test_a_run_can_be_made_and_queued_in_one(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    assert (run.status, run.queued_at) == (RunStatus.QUEUED, run.created_at)
    assert statuses_of(await store.events.after(run.id, 0, 10)) == [(1, "status", "created"), (2, "status", "queued")]


async def test_the_same_idempotency_key_and_request_answer_the_same_run(store: Store, user: User) -> None:
    first = await store.runs.create(new_run(user), idempotency=("key", "digest"))
    second = await store.runs.create(new_run(user), idempotency=("key", "digest"))
    assert first == second
    assert [run.id for run in await store.runs.page(user.id)] == [first.id]


async def test_the_same_idempotency_key_with_another_request_is_refused(store: Store, user: User) -> None:
    first = await store.runs.create(new_run(user), idempotency=("key", "digest"))
    with pytest.raises(IdempotencyKeyReused, match=f"run {first.id}"):
        await store.runs.create(new_run(user), idempotency=("key", "another"))


async def test_idempotency_keys_of_two_users_have_nothing_to_do_with_each_other(
    store: Store, user: User, stranger: User
) -> None:
    first = await store.runs.create(new_run(user), idempotency=("key", "digest"))
    second = await store.runs.create(new_run(stranger), idempotency=("key", "digest"))
    assert first.id != second.id


async def test_ten_requests_at_once_with_one_key_make_one_run(store: Store, second_store: Store, user: User) -> None:
    made = await asyncio.gather(
        *(
            (store, second_store)[number % 2].runs.create(new_run(user), idempotency=("key", "digest"), start=True)
            for number in range(10)
        )
    )
    assert len({run.id for run in made}) == 1
    assert len(await store.runs.page(user.id)) == 1
    assert len(await store.events.after(made[0].id, 0, 100)) == 2


# --- get and page ---


async def test_another_users_run_is_not_there(store: Store, user: User, stranger: User) -> None:
    run = await store.runs.create(new_run(user))
    with pytest.raises(NotFound):
        await store.runs.get(stranger.id, run.id)
    for act in (store.runs.start, store.runs.cancel):
        with pytest.raises(NotFound):
            await act(stranger.id, run.id)
    with pytest.raises(NotFound):
        await store.runs.retry(stranger.id, run.id, uncertain_step_is_done=False)
    assert await store.runs.get(user.id, run.id) == run
    assert await store.runs.find(run.id) == run


async def test_a_run_that_nobody_made_is_not_there(store: Store, user: User) -> None:
    with pytest.raises(NotFound, match="GET /agent/runs"):
        await store.runs.get(user.id, new_run(user).id)
    assert await store.runs.find(new_run(user).id) is None


async def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repeat(
    store: Store, user: User, stranger: User
) -> None:
    made = [await store.runs.create(new_run(user, id=f"run-{number}")) for number in range(5)]
    await store.runs.create(new_run(stranger))
    first = await store.runs.page(user.id, limit=2)
    await store.runs.create(new_run(user, id="run-9"))
    second = await store.runs.page(user.id, before=first[-1].id, limit=2)
    third = await store.runs.page(user.id, before=second[-1].id, limit=2)
    assert [*first, *second, *third] == made[::-1]


async def test_a_page_can_hold_the_runs_of_one_state_only(store: Store, user: User) -> None:
    await store.runs.create(new_run(user))
    queued = await store.runs.create(new_run(user), start=True)
    assert await store.runs.page(user.id, status=RunStatus.QUEUED) == [queued]


async def test_unfinished_runs_are_paged_by_id_whoever_owns_them(store: Store, user: User, stranger: User) -> None:
    for number, owner in enumerate((user, stranger, user)):
        await store.runs.create(new_run(owner, id=f"run-{number}"), start=True)
    await store.runs.create(new_run(user, id="run-created"))
    await store.runs.create(new_run(user, id="run-over"), start=True)
    await store.runs.cancel(user.id, "run-over")
    await store.running_runs.take("run-2", 1)
    first = await store.runs.unfinished(limit=2)
    second = await store.runs.unfinished(after=first[-1].id, limit=2)
    assert [run.id for run in (*first, *second)] == ["run-0", "run-1", "run-2"]


# --- start ---


async def test_a_created_run_can_be_started(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    started, events = await store.runs.start(user.id, run.id)
    assert started.status is RunStatus.QUEUED
    assert started.queued_at is not None
    assert statuses_of(events) == [(2, "status", "queued")]
    assert await store.events.after(run.id, 1, 10) == events


async def test_starting_again_changes_nothing(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    assert await store.runs.start(user.id, run.id) == (run, [])


async def test_five_starts_at_once_write_one_event(store: Store, second_store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    answers = await asyncio.gather(
        *((store, second_store)[number % 2].runs.start(user.id, run.id) for number in range(5))
    )
    assert [len(events) for _, events in answers].count(1) == 1
    assert await store.events.last_id(run.id) == 2


@pytest.mark.parametrize(
    ("ending", "hint"), [(RunStatus.COMPLETED, "create a new run"), (RunStatus.FAILED, "retry it")]
)
async def test_a_run_that_is_over_cannot_be_started(store: Store, user: User, ending: RunStatus, hint: str) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(ending, None))
    with pytest.raises(TransitionNotAllowed, match=hint):
        await store.runs.start(user.id, run.id)


# --- cancel ---


@pytest.mark.parametrize("start", [False, True])
async def test_a_run_that_nobody_holds_is_cancelled_at_once(store: Store, user: User, start: bool) -> None:
    run = await store.runs.create(new_run(user), start=start)
    cancelled, events = await store.runs.cancel(user.id, run.id)
    assert cancelled.status is RunStatus.CANCELLED
    assert cancelled.finished_at is not None
    number = 3 if start else 2
    assert statuses_of(events) == [(number, "status", "cancelled"), (number + 1, "end", "cancelled")]


async def test_a_running_run_keeps_its_state_and_the_request_to_cancel_is_noted(store: Store, user: User) -> None:
    run = await running_run(store, user)
    asked, events = await store.runs.cancel(user.id, run.id)
    assert asked.status is RunStatus.RUNNING
    assert asked.cancel_requested_at is not None
    assert events == []
    assert (await store.running_runs.rights({run.id: 1})).cancelled == {run.id}


async def test_cancelling_twice_keeps_the_time_of_the_first_request(store: Store, user: User) -> None:
    run = await running_run(store, user)
    first, _ = await store.runs.cancel(user.id, run.id)
    second, _ = await store.runs.cancel(user.id, run.id)
    assert second == first


async def test_cancelling_a_cancelled_run_changes_nothing(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    first, _ = await store.runs.cancel(user.id, run.id)
    assert await store.runs.cancel(user.id, run.id) == (first, [])


async def test_a_run_that_is_over_cannot_be_cancelled(store: Store, user: User) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    with pytest.raises(TransitionNotAllowed, match="it is over"):
        await store.runs.cancel(user.id, run.id)


# --- retry ---


async def failed_run(store: Store, user: User) -> Run:
    """Step a was completed, b failed, c was skipped."""
    run = await running_run(store, user)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.end_step("a", StepStatus.COMPLETED, {"exit_code": 0}),
            lambda transaction: transaction.end_step("b", StepStatus.FAILED, {"exit_code": 1}),
            lambda transaction: transaction.skip_pending_steps(),
            lambda transaction: transaction.finish(RunStatus.FAILED, ERROR),
        ),
    )
    return run


async def test_a_failed_run_can_be_retried_with_all_its_attempts(store: Store, user: User) -> None:
    run = await failed_run(store, user)
    retried, events = await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert (retried.status, retried.attempt, retried.error) == (RunStatus.QUEUED, 1, None)
    assert (retried.started_at, retried.finished_at) == (None, None)
    assert statuses_of(events) == [(3, "status", "queued")]


async def test_a_retry_repeats_no_completed_step_but_all_the_others(store: Store, user: User) -> None:
    run = await failed_run(store, user)
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    journal = await store.journal.steps(run.id)
    assert [step.status for step in journal] == [StepStatus.COMPLETED, StepStatus.PENDING, StepStatus.PENDING]


async def test_a_retry_withdraws_a_request_to_cancel_that_came_too_late(store: Store, user: User) -> None:
    run = await running_run(store, user)
    await store.runs.cancel(user.id, run.id)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(RunStatus.FAILED, ERROR))
    retried, _ = await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert retried.cancel_requested_at is None


@pytest.mark.parametrize(("is_done", "status"), [(True, StepStatus.COMPLETED), (False, StepStatus.PENDING)])
async def test_who_retries_a_waiting_run_decides_about_its_uncertain_step(
    store: Store, user: User, is_done: bool, status: StepStatus
) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.end_step("a", StepStatus.UNCERTAIN),
            lambda transaction: transaction.wait_for_person(ERROR),
        ),
    )
    waiting = await store.runs.get(user.id, run.id)
    assert (waiting.status, waiting.error) == (RunStatus.WAITING, ERROR)
    retried, _ = await store.runs.retry(user.id, run.id, uncertain_step_is_done=is_done)
    assert (retried.status, retried.error) == (RunStatus.QUEUED, None)
    [step, *_] = await store.journal.steps(run.id)
    assert step.status is status


async def test_a_retry_that_does_not_say_what_becomes_of_an_uncertain_step_is_refused_and_changes_nothing(
    store: Store, user: User
) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.end_step("a", StepStatus.UNCERTAIN),
            lambda transaction: transaction.wait_for_person(ERROR),
        ),
    )
    with pytest.raises(Conflict, match=r"step 'a'.*uncertain_step"):
        await store.runs.retry(user.id, run.id, uncertain_step_is_done=None)
    assert (await store.runs.get(user.id, run.id)).status is RunStatus.WAITING
    assert (await store.journal.steps(run.id))[0].status is StepStatus.UNCERTAIN


async def test_where_nothing_is_uncertain_nothing_has_to_be_said(store: Store, user: User) -> None:
    run = await failed_run(store, user)
    retried, _ = await store.runs.retry(user.id, run.id, uncertain_step_is_done=None)
    assert retried.status is RunStatus.QUEUED


async def test_another_attempt_leaves_a_failure_that_only_a_person_may_have_tried_again(
    store: Store, user: User
) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.end_step("a", StepStatus.FAILED, {FINAL_FAILURE: True}),
            lambda transaction: transaction.end_step("b", StepStatus.FAILED, {}),
            lambda transaction: transaction.reopen_steps(),
            lambda transaction: transaction.finish(RunStatus.FAILED, ERROR),
        ),
    )
    states = [step.status for step in await store.journal.steps(run.id)]
    assert states == [StepStatus.FAILED, StepStatus.PENDING, StepStatus.PENDING]
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=None)
    states = [step.status for step in await store.journal.steps(run.id)]
    assert states == [StepStatus.PENDING] * 3


async def test_a_waiting_run_can_be_cancelled(store: Store, user: User) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.wait_for_person(ERROR))
    cancelled, events = await store.runs.cancel(user.id, run.id)
    assert cancelled.status is RunStatus.CANCELLED
    assert [event.type.value for event in events] == ["status", "end"]


async def test_a_run_that_did_not_fail_cannot_be_retried_and_its_steps_stay(store: Store, user: User) -> None:
    run = await failed_run(store, user)
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    await store.running_runs.take(run.id, 2)
    await store.running_runs.write(
        run.id,
        2,
        together(
            lambda transaction: transaction.skip_pending_steps(),
            lambda transaction: transaction.finish(RunStatus.COMPLETED, None),
        ),
    )
    before = await store.journal.steps(run.id)
    with pytest.raises(TransitionNotAllowed):
        await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert await store.journal.steps(run.id) == before


async def test_of_a_start_and_a_cancel_at_once_both_have_events_in_the_order_they_happened(
    store: Store, second_store: Store, user: User
) -> None:
    for _ in range(5):
        run = await store.runs.create(new_run(user))
        answers = await asyncio.gather(
            store.runs.start(user.id, run.id), second_store.runs.cancel(user.id, run.id), return_exceptions=True
        )
        history = [status for _, _, status in statuses_of(await store.events.after(run.id, 0, 10))]
        refused = [answer for answer in answers if isinstance(answer, TransitionNotAllowed)]
        expected = ["created", "cancelled", "cancelled"] if refused else ["created", "queued", "cancelled", "cancelled"]
        assert history == expected
        assert (await store.runs.get(user.id, run.id)).status is RunStatus.CANCELLED


async def test_runs_under_way_are_counted_by_status_and_no_others(store: Store, user: User, stranger: User) -> None:
    assert await store.runs.under_way() == {RunStatus.QUEUED: 0, RunStatus.RUNNING: 0, RunStatus.WAITING: 0}
    await store.runs.create(new_run(user))
    for owner in (user, stranger):
        await store.runs.create(new_run(owner), start=True)
    await running_run(store, user)
    waits, ended = await running_run(store, user), await running_run(store, user)
    await store.running_runs.write(waits.id, 1, lambda transaction: transaction.wait_for_person(ERROR))
    await store.running_runs.write(ended.id, 1, lambda transaction: transaction.finish(RunStatus.FAILED, ERROR))
    assert await store.runs.under_way() == {RunStatus.QUEUED: 2, RunStatus.RUNNING: 1, RunStatus.WAITING: 1}


async def test_a_run_is_found_by_how_its_id_begins_and_by_its_user_alone(
    store: Store, user: User, stranger: User
) -> None:
    runs = [
        await store.runs.create(replace(new_run(user), id=run_id)) for run_id in (_id("01aa"), _id("01ab"), _id("02"))
    ]
    await store.runs.create(replace(new_run(stranger), id=_id("01ac")))
    for beginning, found in {
        "01": [1, 0],
        "01a": [1, 0],
        "01aa": [0],
        runs[2].id: [2],
        "01ac": [],
        "01aa-": [],
    }.items():
        page = await store.runs.page(user.id, beginning=beginning)
        assert [run.id for run in page] == [runs[number].id for number in found], beginning


def _id(begins: str) -> str:
    return begins + "00000000-0000-7000-8000-000000000000"[len(begins) :]
