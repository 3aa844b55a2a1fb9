"""One hand on a run: what a worker may write while it holds it, and that nobody else may."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, delete, update

from backplane.domain.events import Event, EventType, encode
from backplane.domain.plans import parse_plan
from backplane.domain.runs import FINAL, CancelRequested, Run, RunError, RunStatus
from backplane.domain.steps import StepStatus, pending_steps
from backplane.domain.users import User
from backplane.errors import Superseded
from backplane.store import Store
from backplane.store.database import Database
from backplane.store.run_transaction import RunTransaction
from backplane.store.run_writes import AddEvents, UnlessCancelled
from backplane.store.tables import runs
from tests.event_data import data_of
from tests.submitted import new_run, plan, shell, together
from tests.waiting import wait_until

PLAN = parse_plan(plan(shell("a", "true", title="A"), shell("b", "true")))
ERROR = RunError("command_failed", "it failed", retryable=True, step="a")


def touch(transaction: RunTransaction) -> None:
    """The least a worker can write."""


def adding(*events: Event) -> Callable[[RunTransaction], None]:
    return lambda transaction: transaction.add_events(events)


def log_event(run_id: str, number: int, **data: Any) -> Event:
    return encode(run_id, number, EventType.LOG, {"line": f"line {number}", **data})


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    """Queued; its last event has the number 2."""
    return await store.runs.create(new_run(user), start=True)


# --- take ---


async def test_taking_a_queued_run_makes_it_running_in_that_generation(store: Store, run: Run) -> None:
    taken = await store.running_runs.take(run.id, 1)
    assert taken is not None
    assert (taken.run.status, taken.run.generation) == (RunStatus.RUNNING, 1)
    assert taken.run.started_at is not None
    assert (taken.last_event_id, taken.from_lost_worker) == (2, False)
    assert await store.runs.find(run.id) == taken.run


async def test_the_generation_must_rise(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 5)
    assert await store.running_runs.take(run.id, 5) is None
    assert await store.running_runs.take(run.id, 4) is None
    assert await store.running_runs.take(run.id, 6) is not None


async def test_a_run_that_is_taken_over_says_so_and_keeps_its_start(store: Store, run: Run) -> None:
    first = await store.running_runs.take(run.id, 1)
    second = await store.running_runs.take(run.id, 2)
    assert first is not None
    assert second is not None
    assert second.from_lost_worker
    assert second.run.started_at == first.run.started_at


@pytest.mark.parametrize("status", sorted({*FINAL, RunStatus.WAITING, RunStatus.CREATED}))
async def test_only_a_queued_or_running_run_can_be_taken(store: Store, run: Run, status: RunStatus) -> None:
    await store.database.write(lambda connection: connection.execute(update(runs).values(status=status.value)))
    assert await store.running_runs.take(run.id, 1) is None


async def test_a_run_that_nobody_made_cannot_be_taken(store: Store, user: User) -> None:
    assert await store.running_runs.take(new_run(user).id, 1) is None


async def test_of_ten_takes_at_once_in_one_generation_one_succeeds(store: Store, second_store: Store, run: Run) -> None:
    taken = await asyncio.gather(
        *((store, second_store)[number % 2].running_runs.take(run.id, 1) for number in range(10))
    )
    assert sum(one is not None for one in taken) == 1


# --- hold ---

WRITES: dict[str, Callable[[RunTransaction, Run], None]] = {
    "events": lambda transaction, run: transaction.add_events([log_event(run.id, 3)]),
    "plan": lambda transaction, run: transaction.save_plan(PLAN, pending_steps(PLAN)),
    "begin step": lambda transaction, run: transaction.begin_step("a", 1),
    "step is changing": lambda transaction, run: transaction.step_is_changing("a"),
    "end step": lambda transaction, run: transaction.end_step("a", StepStatus.COMPLETED, {}),
    "skip steps": lambda transaction, run: transaction.skip_pending_steps(),
    "reopen steps": lambda transaction, run: transaction.reopen_steps(),
    "finish": lambda transaction, run: transaction.finish(RunStatus.COMPLETED, None),
    "wait for a person": lambda transaction, run: transaction.wait_for_person(ERROR),
    "queue again": lambda transaction, run: transaction.queue_again(attempt=2, error=ERROR),
}


async def everything(store: Store, run: Run) -> tuple[object, ...]:
    row, journal = await store.runs.find(run.id), await store.journal.steps(run.id, with_files=True)
    return row, journal, await store.events.after(run.id, 0, 1000)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_an_older_generation_writes_nothing(
    store: Store, run: Run, write: Callable[[RunTransaction, Run], None]
) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.take(run.id, 2)
    before = await everything(store, run)
    with pytest.raises(Superseded):
        await store.running_runs.write(run.id, 1, lambda transaction: write(transaction, run))
    assert await everything(store, run) == before


@pytest.mark.parametrize("generation", [0, 2])
async def test_only_the_generation_that_took_it_holds_a_run(store: Store, run: Run, generation: int) -> None:
    await store.running_runs.take(run.id, 1)
    with pytest.raises(Superseded, match=f"generation {generation}"):
        await store.running_runs.write(run.id, generation, touch)


async def test_nothing_is_written_to_a_run_that_is_over(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    with pytest.raises(Superseded):
        await store.running_runs.write(run.id, 1, touch)


async def test_what_is_written_in_one_hold_is_there_together_or_not_at_all(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    before = await everything(store, run)

    def write(transaction: RunTransaction) -> None:
        transaction.save_plan(PLAN, pending_steps(PLAN))
        transaction.add_events([log_event(run.id, 3)])
        transaction.finish(RunStatus.COMPLETED, None)
        raise KeyError("the worker has a fault")

    with pytest.raises(KeyError):
        await store.running_runs.write(run.id, 1, write)
    assert await everything(store, run) == before


# --- a newer take at the same moment ---


class OpenTransaction:
    """A write of another process that stays open until it is let go. It has an event loop of its own, since its
    work blocks the one it runs on."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._go = threading.Event()

    def stay(self) -> None:
        """To be called inside the write."""
        self._is_open.set()
        assert self._go.wait(10)

    @asynccontextmanager
    async def __call__(self, url: str, write: Callable[[Store], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
        async def in_other_process() -> None:
            other = Database(url)
            await write(Store(other))
            await other.close()

        writing = asyncio.create_task(asyncio.to_thread(asyncio.run, in_other_process()))
        await asyncio.to_thread(self._is_open.wait, 10)
        try:
            yield
        finally:
            self._go.set()
            await writing


async def test_a_take_waits_for_an_open_write_of_the_older_worker_and_sees_it(
    store: Store, database_url: str, run: Run
) -> None:
    await store.running_runs.take(run.id, 1)
    transaction = OpenTransaction()

    class StaysOpen(tuple[Event, ...]):
        def __iter__(self) -> Iterator[Event]:
            yield from super().__iter__()
            transaction.stay()

    async def older_worker(own: Store) -> None:
        new = AddEvents(StaysOpen([log_event(run.id, 3)]))
        # It asks first, so that there is a transaction to stay in.
        await own.running_runs.commit(run.id, 1, [UnlessCancelled(), new])

    async with transaction(database_url, older_worker):
        taking = asyncio.create_task(store.running_runs.take(run.id, 2))
        done, _ = await asyncio.wait({taking}, timeout=0.2)
        assert not done
    taken = await taking
    assert taken is not None
    assert taken.last_event_id == 3
    with pytest.raises(Superseded):
        await store.running_runs.write(run.id, 1, touch)


async def test_a_write_of_the_older_worker_waits_for_an_open_take_and_is_refused(
    store: Store, database_url: str, run: Run
) -> None:
    await store.running_runs.take(run.id, 1)
    transaction = OpenTransaction()

    async def newer_worker(own: Store) -> None:
        def take(connection: Connection) -> None:
            connection.execute(update(runs).where(runs.c.id == run.id).values(generation=2))
            transaction.stay()

        await own.database.write(take)

    async with transaction(database_url, newer_worker):
        writing = asyncio.create_task(store.running_runs.write(run.id, 1, adding(log_event(run.id, 3))))
        storing = asyncio.create_task(store.running_runs.add_events({(run.id, 1): [log_event(run.id, 4)]}))
        done, _ = await asyncio.wait({writing, storing}, timeout=0.2)
        assert not done
    with pytest.raises(Superseded):
        await writing
    assert await storing == {run.id}
    assert await store.events.last_id(run.id) == 2


async def test_writes_of_workers_that_follow_each_other_never_mix(store: Store, second_store: Store, run: Run) -> None:
    """Each hand numbers on from what it found, and writes as fast as it can until it is refused."""
    hands = 12

    async def write_until_refused(own: Store, generation: int, last_id: int) -> None:
        number = last_id
        while True:
            number += 1
            event = log_event(run.id, number, generation=generation)
            if number % 2:
                if await own.running_runs.add_events({(run.id, generation): [event]}):
                    return
            else:
                try:
                    await own.running_runs.write(run.id, generation, adding(event))
                except Superseded:
                    return

    async def has_events_after(number: int) -> bool:
        return await store.events.last_id(run.id) > number

    writers = []
    for generation in range(1, hands + 1):
        own = (store, second_store)[generation % 2]
        taken = await own.running_runs.take(run.id, generation)
        assert taken is not None
        writers.append(asyncio.create_task(write_until_refused(own, generation, taken.last_event_id)))
        # Each hand has written something before the next one comes.
        await wait_until(partial(has_events_after, taken.last_event_id))
    await store.running_runs.take(run.id, hands + 1)
    await asyncio.gather(*writers)
    events = await store.events.after(run.id, 2, 100_000)
    assert [event.id for event in events] == list(range(3, len(events) + 3))
    generations = [data_of(event)["generation"] for event in events]
    assert generations == sorted(generations)
    assert set(generations) == set(range(1, hands + 1))


# --- events ---


async def test_events_of_several_runs_go_together_and_those_of_a_superseded_one_are_left_out(
    store: Store, user: User
) -> None:
    own, lost, over = [await store.runs.create(new_run(user), start=True) for _ in range(3)]
    for run in (own, lost, over):
        await store.running_runs.take(run.id, 1)
    await store.running_runs.take(lost.id, 2)
    await store.running_runs.write(over.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    refused = await store.running_runs.add_events({(run.id, 1): [log_event(run.id, 3)] for run in (own, lost, over)})
    assert refused == {lost.id, over.id}
    assert await store.events.last_ids([own.id, lost.id, over.id]) == {own.id: 3, lost.id: 2, over.id: 2}


async def test_tools_that_are_noted_again_take_the_place_of_those_before_and_go_with_the_run(
    store: Store, run: Run
) -> None:
    first, last = [{"name": "s__a"}, {"name": "s__b"}], [{"name": "s__c", "description": "\ud800\x00é"}]
    await store.running_runs.take(run.id, 1)
    found = [await store.journal.tools(run.id)]
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.note_tools(first))
    found.append(await store.journal.tools(run.id))
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.note_tools(last))
    found.append(await store.journal.tools(run.id))
    await store.database.write(lambda connection: connection.execute(delete(runs).where(runs.c.id == run.id)))
    found.append(await store.journal.tools(run.id))
    assert found == [[], first, last, []]


async def test_an_event_that_is_stored_again_stays_as_it_was(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    event = log_event(run.id, 3)
    await store.running_runs.add_events({(run.id, 1): [event]})
    await store.running_runs.add_events({(run.id, 1): [log_event(run.id, 3, other=True), log_event(run.id, 4)]})
    assert (await store.events.after(run.id, 2, 10))[0] == event
    assert await store.events.last_id(run.id) == 4


async def test_events_are_read_in_order_after_a_cursor_and_no_more_than_asked_for(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.add_events({(run.id, 1): [log_event(run.id, number) for number in (12, 5, 3, 4, 11)]})
    assert [event.id for event in await store.events.after(run.id, 3, 3)] == [4, 5, 11]
    assert await store.events.after(run.id, 12, 3) == []


async def test_a_run_without_events_has_none(store: Store) -> None:
    assert await store.events.last_id("none") == 0
    assert await store.events.last_ids(["none"]) == {}
    assert await store.events.after("none", 0, 10) == []


# --- rights ---


async def test_rights_name_the_runs_that_are_lost_over_or_to_be_cancelled(store: Store, user: User) -> None:
    own, newer, over, cancelled = [await store.runs.create(new_run(user), start=True) for _ in range(4)]
    for run in (own, newer, over, cancelled):
        await store.running_runs.take(run.id, 1)
    await store.running_runs.take(newer.id, 2)
    await store.running_runs.write(over.id, 1, lambda transaction: transaction.finish(RunStatus.FAILED, ERROR))
    await store.runs.cancel(user.id, cancelled.id)
    await store.runs.cancel(user.id, newer.id)
    rights = await store.running_runs.rights({run.id: 1 for run in (own, newer, over, cancelled)} | {"gone": 1})
    assert rights.superseded == {newer.id, over.id, "gone"}
    assert rights.cancelled == {cancelled.id}


# --- the journal ---


async def test_the_journal_follows_a_step_from_its_plan_to_its_result(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    seen = []

    async def look(act: Callable[[RunTransaction], None]) -> None:
        await store.running_runs.write(run.id, 1, act)
        [first, second] = await store.journal.steps(run.id, with_files=True)
        seen.append((first.status.value, first.tries))
        assert (second.step_id, second.position, second.status) == ("b", 1, StepStatus.PENDING)

    await look(lambda transaction: transaction.save_plan(PLAN, pending_steps(PLAN)))
    await look(lambda transaction: transaction.begin_step("a", 2))
    await look(lambda transaction: transaction.step_is_changing("a"))
    await look(lambda transaction: transaction.end_step("a", StepStatus.COMPLETED, {"exit_code": 0}))
    assert seen == [("pending", 0), ("started", 2), ("changing", 2), ("completed", 2)]
    [first, _] = await store.journal.steps(run.id, with_files=True)
    assert (first.title, first.tool, first.result) == ("A", "shell", {"exit_code": 0})
    assert first.started_at is not None
    assert first.finished_at is not None
    assert first.started_at <= first.finished_at


async def test_a_plan_is_kept_as_it_was_made(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.save_plan(PLAN, pending_steps(PLAN)))
    kept = await store.runs.find(run.id)
    assert kept is not None
    assert parse_plan(kept.plan) == PLAN


async def test_a_plan_whose_commit_was_not_answered_can_be_saved_again(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    for tries in (1, 2):
        await store.running_runs.write(
            run.id,
            1,
            together(
                lambda transaction: transaction.save_plan(PLAN, pending_steps(PLAN)),
                lambda transaction, tries=tries: transaction.begin_step("a", tries),  # type: ignore[misc]
            ),
        )
    assert [(step.status.value, step.tries) for step in await store.journal.steps(run.id, with_files=True)] == [
        ("started", 2),
        ("pending", 0),
    ]


async def test_a_result_may_contain_any_character(store: Store, run: Run) -> None:
    output = "nul \0, bell \a, lone surrogate \ud800, high \U0010ffff, quote ' and \\"
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.save_plan(PLAN, pending_steps(PLAN)),
            lambda transaction: transaction.end_step("a", StepStatus.COMPLETED, {"output": output}),
            lambda transaction: transaction.add_events([encode(run.id, 3, EventType.LOG, {"line": "nul \0, bell \a"})]),
            lambda transaction: transaction.finish(RunStatus.FAILED, RunError("command_failed", "nul \0")),
        ),
    )
    [step, _] = await store.journal.steps(run.id, with_files=True)
    assert step.result == {"output": output}
    assert data_of((await store.events.after(run.id, 2, 1))[0]) == {"line": "nul \0, bell \a"}


async def test_skipping_touches_only_steps_that_were_not_begun(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.save_plan(PLAN, pending_steps(PLAN)),
            lambda transaction: transaction.begin_step("a", 1),
            lambda transaction: transaction.skip_pending_steps(),
        ),
    )
    assert [step.status for step in await store.journal.steps(run.id, with_files=True)] == [
        StepStatus.STARTED,
        StepStatus.SKIPPED,
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (StepStatus.COMPLETED, StepStatus.COMPLETED),
        (StepStatus.FAILED, StepStatus.PENDING),
        (StepStatus.STARTED, StepStatus.STARTED),
        (StepStatus.CHANGING, StepStatus.CHANGING),
        (StepStatus.SKIPPED, StepStatus.PENDING),
        (StepStatus.UNCERTAIN, StepStatus.UNCERTAIN),
    ],
)
async def test_another_attempt_opens_what_failed_and_forgets_no_doubt(
    store: Store, run: Run, before: StepStatus, after: StepStatus
) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.save_plan(PLAN, pending_steps(PLAN)),
            lambda transaction: transaction.end_step("a", before),
            lambda transaction: transaction.reopen_steps(),
        ),
    )
    assert [step.status for step in await store.journal.steps(run.id, with_files=True)] == [after, StepStatus.PENDING]


# --- the ends of a hold ---


async def test_a_run_that_is_handed_back_goes_on_in_the_middle_of_its_attempt(store: Store, run: Run) -> None:
    taken = await store.running_runs.take(run.id, 1)
    assert taken is not None
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.queue_again(attempt=None, error=None))
    back = await store.runs.find(run.id)
    assert back is not None
    assert (back.status, back.attempt, back.started_at) == (RunStatus.QUEUED, 1, taken.run.started_at)
    again = await store.running_runs.take(run.id, 2)
    assert again is not None
    assert not again.from_lost_worker


async def test_the_clock_of_the_next_attempt_begins_anew(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.queue_again(attempt=2, error=ERROR))
    back = await store.runs.find(run.id)
    assert back is not None
    assert (back.status, back.attempt, back.started_at, back.error) == (RunStatus.QUEUED, 2, None, ERROR)


async def test_nothing_is_written_to_a_run_that_waits_or_is_queued_again(store: Store, run: Run) -> None:
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.queue_again(attempt=None, error=None))
    assert await store.running_runs.add_events({(run.id, 1): [log_event(run.id, 3)]}) == {run.id}


@pytest.mark.parametrize("left", [RunTransaction.queue_again, RunTransaction.wait_for_person])
async def test_a_run_that_is_to_be_cancelled_is_left_to_nobody_else(
    store: Store, run: Run, user: User, left: Callable[..., None]
) -> None:
    await store.running_runs.take(run.id, 1)
    await store.runs.cancel(user.id, run.id)
    leave = partial(left, attempt=2, error=ERROR) if left is RunTransaction.queue_again else partial(left, error=ERROR)
    with pytest.raises(CancelRequested):
        await store.running_runs.write(run.id, 1, together(RunTransaction.unless_cancelled, leave))
    found = await store.runs.get(user.id, run.id)
    assert found.status is RunStatus.RUNNING
