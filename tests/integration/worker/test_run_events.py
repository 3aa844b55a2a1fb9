"""The events of running runs on their way: shared fairly, kept when a part is away, refused when another worker has the
run."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import RunError
from backplane.domain.users import Tier, User
from backplane.errors import Superseded, Unavailable
from backplane.logs.base import Appended, Batch
from backplane.process.tasks import end
from backplane.store.run_transaction import RunTransaction
from backplane.store.run_writes import RunWrite
from backplane.store.running_runs import RunningRuns
from tests.platform.workers import Platform
from tests.submitted import shell
from tests.waiting import wait_until
from worker.run.event_writer import CALL_BYTES, EventWriter
from worker.run.events import UNPUBLISHED_MAX, RunEvents
from worker.run.send_buffer import SHARE, share

CHATTY = 10 * SHARE


@pytest.fixture
async def writer(platform: Platform) -> AsyncIterator[EventWriter]:
    writer = EventWriter(
        platform.resources.store, platform.resources.event_log, flush_seconds=0.0, gather_seconds=0.005
    )
    writing = asyncio.create_task(writer.run())
    yield writer
    writing.cancel()
    await asyncio.wait({writing})
    assert writing.cancelled(), "the loops end only when they are told to"


async def running_run(
    platform: Platform, writer: EventWriter, superseded: list[str] | None = None, user: User | None = None
) -> RunEvents:
    """The events of a new run that this test holds."""
    run_id = await platform.submit(shell("a", "true"), user=user)
    [claim] = await platform.resources.queue.claim("by-hand", 1)
    taken = await platform.taken(claim)
    lost = superseded if superseded is not None else []
    return writer.open(run_id, taken.run.user_id, claim.generation, taken.last_event_id, lambda: lost.append(run_id))


def emit_lines(events: RunEvents, count: int = 1) -> None:
    for number in range(count):
        events.emit(EventType.LOG, {"line": f"line {number}"})


@asynccontextmanager
async def listening(platform: Platform, *runs: RunEvents) -> AsyncIterator[AsyncIterator[Event]]:
    """Events of these runs in the order in which they reach a watcher."""
    arrived: asyncio.Queue[Event] = asyncio.Queue()

    async def given() -> AsyncIterator[Event]:
        while True:
            yield await arrived.get()

    async with platform.resources.event_log.subscription() as subscription:

        async def take() -> None:
            async for received in subscription.listen():
                assert isinstance(received, list)
                for event in received:
                    arrived.put_nowait(event)

        taking = asyncio.create_task(take())
        try:
            for run in runs:
                await subscription.add(run.run_id)
            yield given()
        finally:
            taking.cancel()
            await asyncio.wait({taking})


def noted_calls(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None
) -> list[dict[str, list[int]]]:
    """The calls of the live wire from here on: the numbers of each run's events. `before` each of them is noted."""
    calls: list[dict[str, list[int]]] = []
    append = platform.resources.event_log.append

    async def noted(batches: Sequence[Batch]) -> list[Appended]:
        before()
        calls.append({batch.run_id: [event.id for event in batch.events] for batch in batches})
        return await append(batches)

    monkeypatch.setattr(platform.resources.event_log, "append", noted)
    return calls


def published_numbers(events: RunEvents, calls: Sequence[Mapping[str, list[int]]]) -> list[int]:
    return [number for call in calls for number in call.get(events.run_id, ())]


async def test_a_run_with_much_to_say_does_not_hold_up_another_ones_events(
    platform: Platform, writer: EventWriter
) -> None:
    chatty, quiet = await running_run(platform, writer), await running_run(platform, writer)
    async with listening(platform, chatty, quiet) as arriving:
        emit_lines(chatty, CHATTY)
        emit_lines(quiet)
        before = 0
        async for event in arriving:
            if event.run_id == quiet.run_id:
                break
            before += 1
    assert before <= SHARE
    await chatty.all_published.wait()


@pytest.mark.slow
async def test_among_twenty_runs_of_which_ten_never_stop_talking_a_quiet_one_is_in_the_next_call(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than one user may have at once.
    token, _ = await platform.resources.store.users.create_token("bob", Tier.STANDARD)
    chatty = [await running_run(platform, writer) for _ in range(10)]
    quiet = [await running_run(platform, writer, user=token.user) for _ in range(10)][-1]

    def go_on() -> None:
        for run in chatty:
            emit_lines(run, SHARE)
        if len(calls) == 3:
            emit_lines(quiet)

    async with listening(platform, quiet) as arriving:
        calls = noted_calls(platform, monkeypatch, before=go_on)
        go_on()
        async with asyncio.timeout(30):
            event = await anext(arriving)
        assert [number for number, call in enumerate(calls) if quiet.run_id in call] == [4]
        assert calls[4][quiet.run_id] == [event.id]
        assert all(len(call) == 11 if number == 4 else 10 for number, call in enumerate(calls))
        monkeypatch.undo()


async def test_neither_does_it_hold_up_their_way_into_the_database(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    chatty, quiet = await running_run(platform, writer), await running_run(platform, writer)
    stored: list[dict[str, int]] = []
    add_events = RunningRuns.add_events

    async def noted(self: RunningRuns, batches: Mapping[tuple[str, int], Sequence[Event]]) -> frozenset[str]:
        stored.append({run_id: len(events) for (run_id, _), events in batches.items()})
        return await add_events(self, batches)

    monkeypatch.setattr(RunningRuns, "add_events", noted)
    emit_lines(chatty, CHATTY)
    emit_lines(quiet)
    await wait_until(lambda: not chatty.unsaved and not quiet.unsaved)
    assert stored[0] == {chatty.run_id: SHARE, quiet.run_id: 1}
    assert max(max(batch.values()) for batch in stored) <= SHARE
    assert [event.id for event in await platform.history(chatty.run_id)] == list(range(1, CHATTY + 3))


def test_a_share_is_bounded_in_events_and_in_bytes_and_never_empty() -> None:
    small = [encode("run", number, EventType.LOG, {}) for number in range(1, 2 * SHARE)]
    assert share(small, CALL_BYTES) == small[:SHARE]
    size = len(small[0].line)
    assert share(small, 3 * size) == small[:3]
    assert share(small, 3 * size - 1) == small[:2]
    assert share(small, 0) == small[:1]


def test_a_share_counts_bytes_and_not_characters() -> None:
    wide = [encode("run", number, EventType.LOG, {"line": "€" * 1000}) for number in range(1, 9)]
    assert len(share(wide, 3 * 3000 + 1000)) == 3


async def test_a_burst_takes_as_many_calls_as_it_has_shares(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = await running_run(platform, writer)
    calls = noted_calls(platform, monkeypatch)
    emit_lines(events, CHATTY)
    await events.all_published.wait()
    assert [len(call[events.run_id]) for call in calls] == [SHARE] * 10


async def test_what_follows_within_the_gathering_time_is_one_call(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EventWriter(platform.resources.store, platform.resources.event_log, flush_seconds=0.0, gather_seconds=0.5)
    events = await running_run(platform, writer)
    calls = noted_calls(platform, monkeypatch)
    writing = asyncio.create_task(writer.run())
    emit_lines(events)
    await events.all_published.wait()
    for _ in range(5):
        emit_lines(events)
        await asyncio.sleep(0)
    await events.all_published.wait()
    assert calls == [{events.run_id: [3]}, {events.run_id: [4, 5, 6, 7, 8]}]
    writing.cancel()
    await asyncio.wait({writing})


async def test_events_reach_the_watchers_in_order_each_once(platform: Platform, writer: EventWriter) -> None:
    events = await running_run(platform, writer)
    async with listening(platform, events) as arriving:
        seen = []
        for _ in range(3):
            emit_lines(events, SHARE)
            await events.all_published.wait()
        async for event in arriving:
            seen.append(event.id)
            if len(seen) == 3 * SHARE:
                break
    assert seen == list(range(3, 3 + 3 * SHARE))


async def test_what_is_recorded_is_stored_with_all_events_before_it(platform: Platform, writer: EventWriter) -> None:
    events = await running_run(platform, writer)
    emit_lines(events, 7)
    seen = []
    await events.record(lambda transaction: seen.append(transaction))
    assert len(seen) == 1
    assert len(await platform.history(events.run_id)) == 9


async def test_the_worker_learns_of_a_newer_claim_from_redis_or_from_the_database(
    platform: Platform, writer: EventWriter
) -> None:
    superseded: list[str] = []
    events = await running_run(platform, writer, superseded)
    await platform.resources.store.running_runs.take(events.run_id, events.generation + 1)
    emit_lines(events)
    await wait_until(lambda: superseded)
    assert len(await platform.history(events.run_id)) == 2
    assert set(superseded) == {events.run_id}


async def test_what_waits_for_a_wire_that_is_away_is_bounded_and_the_database_has_all(platform: Platform) -> None:
    """No loop is running: nothing is published."""
    writer = EventWriter(
        platform.resources.store, platform.resources.event_log, flush_seconds=0.0, gather_seconds=0.005
    )
    events = await running_run(platform, writer)
    emit_lines(events, 3 * UNPUBLISHED_MAX)
    assert len(events.unpublished) <= UNPUBLISHED_MAX
    assert events.unpublished[-1].id == 3 * UNPUBLISHED_MAX + 2
    await events.record()
    assert await platform.resources.store.events.last_id(events.run_id) == 3 * UNPUBLISHED_MAX + 2


async def test_what_is_held_back_is_published_and_stored_only_with_the_next_record(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, other = await running_run(platform, writer), await running_run(platform, writer)
    calls, last_stored = noted_calls(platform, monkeypatch), platform.resources.store.events.last_id
    events.hold_back()
    emit_lines(events, 3)
    # Both loops have gone round since.
    emit_lines(other)
    await other.all_published.wait()
    await wait_until(lambda: not other.unsaved)
    assert (published_numbers(events, calls), await last_stored(events.run_id)) == ([], 2)
    await events.record()
    await events.all_published.wait()
    assert (published_numbers(events, calls), await last_stored(events.run_id)) == ([3, 4, 5], 5)


def _refuse(transaction: RunTransaction) -> None:
    """The transaction raises TypeError: nothing carries this out."""
    transaction.writes.append(RunWrite())


async def test_what_a_refused_transaction_was_to_publish_has_never_been(
    platform: Platform, writer: EventWriter
) -> None:
    events = await running_run(platform, writer)
    with pytest.raises(TypeError):
        await events.record(_refuse, publish=[(EventType.STEP, {"status": "started"})])
    emit_lines(events)
    await events.record(publish=[(EventType.STEP, {"status": "failed"})])
    history = await platform.history(events.run_id)
    assert [(event.id, event.type.value) for event in history[2:]] == [(3, "log"), (4, "step")]
    assert '"failed"' in history[-1].line


async def test_what_was_deferred_is_written_after_another_transaction_was_refused(
    platform: Platform, writer: EventWriter
) -> None:
    events = await running_run(platform, writer)
    failures = platform.resources.store.dead_letters.failures
    events.defer(lambda transaction: transaction.note_failure(1, RunError("failed", "no")))
    events.emit(EventType.STEP, {"status": "completed"})
    with pytest.raises(TypeError):
        await events.record(_refuse)
    assert await failures(events.run_id) == []
    await events.record()
    assert len(await failures(events.run_id)) == 1
    assert [event.id for event in await platform.history(events.run_id)] == [1, 2, 3]


async def test_a_transaction_that_is_tried_again_writes_the_same_values(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = await running_run(platform, writer)
    commit, committed, noted = RunningRuns.commit, list[Sequence[RunWrite]](), list[str]()

    async def answer_lost(self: RunningRuns, run_id: str, generation: int, writes: Sequence[RunWrite]) -> None:
        committed.append(list(writes))
        await commit(self, run_id, generation, writes)
        if len(committed) == 1:
            raise Unavailable("the database does not answer", part="database")

    def note(transaction: RunTransaction) -> None:
        noted.append("noted")
        transaction.queue_again(attempt=None, error=None)

    monkeypatch.setattr(RunningRuns, "commit", answer_lost)
    events.defer(lambda transaction: transaction.note_failure(1, RunError("failed", "no")))
    with pytest.raises(Superseded):  # as the first commit gave the run back
        await events.record(note, publish=[(EventType.STATUS, {"status": "queued"})])
    assert noted == ["noted"]
    assert committed[0] == committed[1]


async def test_of_two_who_write_at_once_neither_publishes_before_its_own_commit(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = await running_run(platform, writer)
    write, committing = RunningRuns.commit, asyncio.Semaphore(0)

    async def slowly(self: RunningRuns, *asked: Any) -> None:
        await committing.acquire()
        await write(self, *asked)

    monkeypatch.setattr(RunningRuns, "commit", slowly)
    calls = noted_calls(platform, monkeypatch)
    first = asyncio.create_task(events.record(publish=[(EventType.STEP, {"step": "a"})]))
    second = asyncio.create_task(events.record(publish=[(EventType.STEP, {"step": "b"})]))
    await asyncio.sleep(0)
    emit_lines(events)
    committing.release()
    await first
    await wait_until(lambda: not events.unpublished)
    assert published_numbers(events, calls) == [3, 4]
    assert not second.done()
    committing.release()
    await second
    types = [event.type.value for event in await platform.history(events.run_id)]
    assert types[2:] == ["step", "log", "step"]


async def test_who_is_cancelled_while_it_writes_still_learns_whether_it_was_written(
    platform: Platform, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = await running_run(platform, writer)
    write, go, begun = RunningRuns.commit, asyncio.Event(), asyncio.Event()

    async def slowly(self: RunningRuns, *asked: Any) -> None:
        begun.set()
        await go.wait()
        await write(self, *asked)

    monkeypatch.setattr(RunningRuns, "commit", slowly)
    writing = asyncio.create_task(events.record(publish=[(EventType.STEP, {})]))
    await begun.wait()
    writing.cancel()
    go.set()
    await asyncio.wait({writing})
    assert writing.cancelled()
    emit_lines(events)
    await events.record()
    assert [event.id for event in await platform.history(events.run_id)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("type", "waits"), [(EventType.LOG, True), (EventType.STEP, False)])
async def test_a_log_line_may_wait_for_others_and_a_state_does_not(
    platform: Platform, type: EventType, waits: bool
) -> None:
    writer = EventWriter(
        platform.resources.store, platform.resources.event_log, flush_seconds=600.0, gather_seconds=600.0
    )
    writing = asyncio.create_task(writer.run())
    events = await running_run(platform, writer)
    events.emit(EventType.LOG, {"line": "after a silence"})
    await wait_until(lambda: not events.unpublished)
    events.emit(EventType.LOG, {"line": "gathered"})
    events.emit(type, {})
    if waits:
        await asyncio.sleep(0.05)  # what is tested is that nothing happens
        assert len(events.unpublished) == 2
    else:
        await wait_until(lambda: not events.unpublished)
    await end(writing)
