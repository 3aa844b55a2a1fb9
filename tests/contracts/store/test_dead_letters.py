"""What attempts died of, and the runs that are left to an operator: kept with the run's end, gone with its retry."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy import delete, update

from backplane.domain.dead_letters import PROMPT_HEAD_CHARS, DeadCursor, DeadReason
from backplane.domain.events import EventType
from backplane.domain.plans import parse_plan
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.steps import StepStatus, pending_steps
from backplane.domain.users import User
from backplane.errors import NotFound, Superseded, TransitionNotAllowed
from backplane.store import Store
from backplane.store.dead_letters import FAILURES_KEPT
from backplane.store.run_transaction import RunTransaction
from backplane.store.tables import dead_letters, runs
from tests.event_data import data_of
from tests.submitted import new_run, plan, shell, together

ERROR = RunError("part_unavailable", "the store does not answer", retryable=True, step="a")
PLAN = parse_plan(plan(shell("a", "true"), shell("b", "true")))


async def dead(store: Store, user: User, reason: DeadReason = DeadReason.RETRIES_EXHAUSTED, *, crashes: int = 0) -> Run:
    """A run that has failed and is a dead letter."""
    run = await store.runs.create(new_run(user, prompt="p" * 500), start=True)
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, partial(die, reason=reason, crashes=crashes))
    found = await store.runs.find(run.id)
    assert found is not None
    return found


def die(transaction: RunTransaction, *, reason: DeadReason = DeadReason.RETRIES_EXHAUSTED, crashes: int = 0) -> None:
    transaction.note_failure(1, ERROR, "Traceback", "worker-1")
    transaction.dead_letter(reason, crashes)
    transaction.finish(RunStatus.FAILED, ERROR)


# --- written by the run's worker ---


async def test_a_dead_letter_says_why_whose_it_is_and_what_it_was_for(store: Store, user: User) -> None:
    before = datetime.now(UTC)
    run = await dead(store, user, DeadReason.POISON, crashes=3)
    found = await store.dead_letters.get(run.id)
    assert (found.reason, found.attempts, found.crashes) == (DeadReason.POISON, 1, 3)
    assert (found.user_id, found.user_name, found.created_at) == (user.id, "ada", run.created_at)
    assert (found.prompt_head, found.error) == ("p" * PROMPT_HEAD_CHARS, ERROR)
    assert before <= found.at <= datetime.now(UTC)
    assert await store.dead_letters.page() == [found]


async def test_what_each_attempt_died_of_is_kept_in_order(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    for generation, message in enumerate(["first", "second"], 1):
        await store.running_runs.take(run.id, generation)
        error = RunError("part_unavailable", message, retryable=True)

        def fail(transaction: RunTransaction, generation: int = generation, error: RunError = error) -> None:
            transaction.note_failure(generation, error, f"Traceback of {error.message}", f"worker-{generation}")
            transaction.queue_again(attempt=generation + 1, error=error)

        await store.running_runs.write(run.id, generation, fail)
    assert [
        (failure.attempt, failure.generation, failure.error.message, failure.traceback, failure.worker_id)
        for failure in await store.dead_letters.failures(run.id)
    ] == [(1, 1, "first", "Traceback of first", "worker-1"), (2, 2, "second", "Traceback of second", "worker-2")]


async def test_what_is_written_again_is_there_once(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.note_failure(1, RunError("a", "a")),
            lambda transaction: transaction.note_failure(1, ERROR),
            lambda transaction: transaction.dead_letter(DeadReason.POISON, 1),
            lambda transaction: transaction.dead_letter(DeadReason.POISON, 3),
        ),
    )
    assert [failure.error for failure in await store.dead_letters.failures(run.id)] == [ERROR]
    assert [letter.crashes for letter in await store.dead_letters.page()] == [3]


@pytest.mark.parametrize(
    "write",
    [
        lambda transaction: transaction.note_failure(1, ERROR),
        lambda transaction: transaction.dead_letter(DeadReason.POISON, 3),
    ],
)
async def test_an_older_generation_writes_neither(
    store: Store, user: User, write: Callable[[RunTransaction], None]
) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    await store.running_runs.take(run.id, 2)
    with pytest.raises(Superseded):
        await store.running_runs.write(run.id, 1, write)
    assert (await store.dead_letters.failures(run.id), await store.dead_letters.count()) == ([], 0)


async def test_a_failure_may_contain_any_character(store: Store, user: User) -> None:
    text = "nul \0, lone surrogate \ud800, high \U0010ffff, quote ' and \\"
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(
        run.id, 1, lambda transaction: transaction.note_failure(1, RunError("a", text), text)
    )
    [failure] = await store.dead_letters.failures(run.id)
    kept = text.replace("\ud800", "\N{REPLACEMENT CHARACTER}")  # half a character, which no answer could hold
    assert (failure.error.message, failure.traceback, failure.worker_id) == (kept, kept, None)


async def test_of_a_run_that_fails_for_ever_the_last_failures_are_kept(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    for generation in (1, 2, 3, FAILURES_KEPT + 2):
        await store.running_runs.take(run.id, generation)
        await store.running_runs.write(run.id, generation, lambda transaction: transaction.note_failure(1, ERROR))
    kept = [failure.generation for failure in await store.dead_letters.failures(run.id)]
    assert kept == [3, FAILURES_KEPT + 2]


async def test_a_run_that_is_deleted_takes_its_failures_and_its_dead_letter_along(store: Store, user: User) -> None:
    run = await dead(store, user)
    await store.database.write(lambda connection: connection.execute(delete(runs).where(runs.c.id == run.id)))
    assert (await store.dead_letters.failures(run.id), await store.dead_letters.count()) == ([], 0)


# --- lists ---


async def test_dead_letters_are_listed_newest_first_page_by_page(store: Store, user: User) -> None:
    made = [(await dead(store, user)).id for _ in range(5)]
    # Two of them at the very same moment.
    at = (await store.dead_letters.get(made[2])).at
    await store.database.write(
        lambda connection: connection.execute(
            update(dead_letters).where(dead_letters.c.run_id == made[1]).values(at=at)
        )
    )
    seen: list[str] = []
    before = None
    while page := await store.dead_letters.page(before=before, limit=2):
        seen += [letter.run_id for letter in page]
        before = DeadCursor(page[-1].at, page[-1].run_id)
    assert seen == made[::-1]
    assert [run_id for run_id, _ in await store.dead_letters.oldest(3)] == made[:3]


async def test_a_run_whose_files_are_gone_is_not_among_those_to_redrive(store: Store, user: User) -> None:
    kept, gone = [await dead(store, user) for _ in range(2)]
    await store.database.write(
        lambda connection: connection.execute(
            update(runs).where(runs.c.id == gone.id).values(files_expired_at=datetime.now(UTC))
        )
    )
    assert await store.dead_letters.oldest(10) == [(kept.id, kept.user_id)]
    with pytest.raises(TransitionNotAllowed):
        await store.runs.redrive(gone.id)
    assert await store.dead_letters.count() == 2


async def test_a_page_goes_on_behind_a_dead_letter_that_is_gone(store: Store, user: User) -> None:
    first, second, third = [await dead(store, user) for _ in range(3)]
    [_, last] = await store.dead_letters.page(limit=2)
    await store.dead_letters.purge(second.id)
    assert last.run_id == second.id
    rest = await store.dead_letters.page(before=DeadCursor(last.at, last.run_id))
    assert [letter.run_id for letter in rest] == [first.id]
    assert third.id not in [letter.run_id for letter in rest]


async def test_dead_letters_are_listed_by_reason(store: Store, user: User) -> None:
    made = {reason: (await dead(store, user, reason)).id for reason in DeadReason}
    for reason, run_id in made.items():
        assert [letter.run_id for letter in await store.dead_letters.page(reason=reason)] == [run_id]


async def test_the_newest_are_listed_with_their_time_for_those_who_mirror_them(store: Store, user: User) -> None:
    made = [await dead(store, user) for _ in range(3)]
    at = [(await store.dead_letters.get(run.id)).at.timestamp() for run in made]
    assert await store.dead_letters.newest() == {run.id: time for run, time in zip(made, at, strict=True)}
    assert list(await store.dead_letters.newest(2)) == [made[2].id, made[1].id]
    assert await store.dead_letters.count() == 3


# --- out of the dead letters again ---


async def test_a_retry_by_its_user_takes_it_out_and_keeps_its_failures(store: Store, user: User) -> None:
    run = await dead(store, user)
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert await store.dead_letters.count() == 0
    assert len(await store.dead_letters.failures(run.id)) == 1


async def test_a_redriven_run_is_queued_as_if_for_the_first_time_with_an_event(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)

    def write(transaction: RunTransaction) -> None:
        transaction.save_plan(PLAN, pending_steps(PLAN))
        transaction.end_step("a", StepStatus.FAILED)
        transaction.skip_pending_steps()
        die(transaction)

    await store.running_runs.write(run.id, 1, write)
    redriven, events = await store.runs.redrive(run.id)
    assert await store.runs.find(run.id) == redriven
    assert (redriven.status, redriven.attempt, redriven.error, redriven.finished_at) == (
        RunStatus.QUEUED,
        1,
        None,
        None,
    )
    assert [(event.type, data_of(event)) for event in events] == [
        (EventType.STATUS, {"status": "queued", "attempt": 1}),
    ]
    assert [step.status for step in await store.journal.steps(run.id)] == [StepStatus.PENDING, StepStatus.PENDING]
    assert await store.dead_letters.count() == 0


async def test_a_redrive_leaves_an_uncertain_step_to_the_runs_user(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)

    def write(transaction: RunTransaction) -> None:
        transaction.save_plan(PLAN, pending_steps(PLAN))
        transaction.end_step("a", StepStatus.UNCERTAIN)
        die(transaction)

    await store.running_runs.write(run.id, 1, write)
    await store.runs.redrive(run.id)
    assert [step.status for step in await store.journal.steps(run.id)] == [StepStatus.UNCERTAIN, StepStatus.PENDING]


async def test_of_ten_redrives_at_once_one_succeeds(store: Store, second_store: Store, user: User) -> None:
    run = await dead(store, user)
    redrives = [(store, second_store)[number % 2].runs.redrive(run.id) for number in range(10)]
    done = await asyncio.gather(*redrives, return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["NotFound"] * 9 + ["tuple"]
    assert await store.events.last_id(run.id) == 3


async def test_a_run_that_only_failed_is_not_redriven(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(RunStatus.FAILED, ERROR))
    with pytest.raises(NotFound, match="no dead letter"):
        await store.runs.redrive(run.id)
    found = await store.runs.get(user.id, run.id)
    assert found.status is RunStatus.FAILED


async def test_purging_one_leaves_its_run_failed_and_the_others_dead(store: Store, user: User) -> None:
    first, second = [await dead(store, user) for _ in range(2)]
    await store.dead_letters.purge(first.id)
    assert await store.runs.find(first.id) == first
    assert await store.dead_letters.oldest(10) == [(second.id, second.user_id)]
    with pytest.raises(NotFound):
        await store.dead_letters.purge(first.id)
    with pytest.raises(NotFound):
        await store.dead_letters.get(first.id)


async def test_purging_all_says_how_many_there_were(store: Store, user: User) -> None:
    for _ in range(3):
        await dead(store, user)
    assert [await store.dead_letters.purge_all() for _ in range(2)] == [3, 0]
    assert await store.dead_letters.count() == 0
