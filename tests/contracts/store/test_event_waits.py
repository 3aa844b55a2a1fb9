"""Runs that wait for an event, on each database: no event is lost between the look for it and the wait for it."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backplane.domain.bus import CloudEvent, EventArrived, EventWait, WaitStatus, cloud_event
from backplane.domain.runs import Run, RunError, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.store import Store
from tests.submitted import new_run

STOPPED = RunError("event_required", "the run waits for an event")


def made(id: str = "1", type: str = "order.paid", **more: Any) -> CloudEvent:
    return cloud_event({"specversion": "1.0", "id": id, "source": "/shop", "type": type, **more})


def wait_for(
    run: Run, pattern: str = "order.paid", match: Mapping[str, Any] | None = None, *, key: str = "s1", after: int = 0
) -> EventWait:
    return EventWait(new_run_id(), run.id, run.user_id, key, pattern, match, after, None)


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    made_run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(made_run.id, 1)
    return made_run


async def stop(store: Store, wait: EventWait) -> None:
    await store.running_runs.write(wait.run_id, 1, lambda log: log.wait_for_event(wait, STOPPED))


async def matched(store: Store, lease: float = 60.0) -> list[EventWait]:
    return await store.event_waits.matched(10, lease_seconds=lease)


async def test_an_event_ends_the_wait_in_the_transaction_that_stores_it(store: Store, run: Run) -> None:
    await stop(store, wait_for(run))
    assert await matched(store) == []
    stored = await store.bus.publish(run.user_id, [made("other", "order.sent"), made("it")])
    [wait] = await matched(store)
    assert stored.matched == [wait]
    assert (wait.run_id, wait.status) == (run.id, WaitStatus.MATCHED)
    assert wait.event == made("it").line


async def test_a_run_does_not_stop_for_what_has_come_already(store: Store, run: Run) -> None:
    await store.bus.publish(run.user_id, [made("it")])
    with pytest.raises(EventArrived) as arrived:
        await stop(store, wait_for(run))
    assert arrived.value.wait.event == made("it").line
    assert (await store.runs.get(run.user_id, run.id)).status is RunStatus.RUNNING
    assert await store.event_waits.of_run(run.id) == []


async def test_what_came_before_the_cursor_does_not_count(store: Store, run: Run) -> None:
    await store.bus.publish(run.user_id, [made("old")])
    await stop(store, wait_for(run, after=await store.bus.present(run.user_id)))
    await store.bus.publish(run.user_id, [made("new")])
    [wait] = await matched(store)
    assert wait.event == made("new").line


async def test_an_event_that_is_stored_again_ends_no_wait(store: Store, run: Run) -> None:
    await store.bus.publish(run.user_id, [made("old")])
    await stop(store, wait_for(run, after=1))
    await store.bus.publish(run.user_id, [made("old")])
    assert await matched(store) == []


@pytest.mark.parametrize(
    ("pattern", "match", "ends"),
    [
        ("order.*", {"source": "/shop", "data": {"order": {"id": 42}}}, True),
        ("*", {"subject": "43"}, False),
        ("order.paid.*", None, False),
    ],
)
@pytest.mark.parametrize("comes", ["before", "after"])
async def test_a_wait_ends_by_what_has_all_that_it_names(
    store: Store, run: Run, pattern: str, match: Mapping[str, Any] | None, ends: bool, comes: str
) -> None:
    event = made(subject="42", data={"order": {"id": 42, "total": 3.5}, "tags": ["a", "b"]})
    if comes == "before":
        await store.bus.publish(run.user_id, [event])
    wait = await store.event_waits.open(wait_for(run, pattern, match))
    if comes == "after":
        await store.bus.publish(run.user_id, [event])
        [wait] = await store.event_waits.of_run(run.id)
    assert (wait.status is WaitStatus.MATCHED) == ends


async def test_events_of_another_user_end_no_wait(store: Store, run: Run, stranger: User) -> None:
    await stop(store, wait_for(run))
    await store.bus.publish(stranger.id, [made()])
    assert await matched(store) == []


async def test_a_wait_that_is_begun_again_is_the_same(store: Store, run: Run) -> None:
    first = await store.event_waits.open(wait_for(run))
    await store.bus.publish(run.user_id, [made("a")])
    again = await store.event_waits.open(wait_for(run, "other"))
    assert (again.id, again.pattern, again.status) == (first.id, "order.paid", WaitStatus.MATCHED)


async def test_a_wait_and_its_event_at_one_moment_find_each_other(
    store: Store, second_store: Store, user: User
) -> None:
    runs = [await store.runs.create(new_run(user), start=True) for _ in range(4)]
    calls = [store.event_waits.open(wait_for(run)) for run in runs]
    await asyncio.gather(*calls[:2], second_store.bus.publish(user.id, [made()]), *calls[2:])
    states = [wait.status for run in runs for wait in await store.event_waits.of_run(run.id)]
    assert states == [WaitStatus.MATCHED] * 4


async def test_the_first_of_several_events_ends_the_wait(store: Store, run: Run) -> None:
    await stop(store, wait_for(run))
    await store.bus.publish(run.user_id, [made("a"), made("b")])
    await store.bus.publish(run.user_id, [made("c")])
    [wait] = await matched(store)
    assert wait.event == made("a").line


async def test_a_wait_whose_event_is_removed_still_has_it(store: Store, run: Run) -> None:
    await stop(store, wait_for(run))
    await store.bus.publish(run.user_id, [made("a")])
    await store.bus.remove_before(datetime.now(UTC) + timedelta(hours=1), 10)
    [wait] = await matched(store)
    assert wait.event == made("a").line


async def test_a_wait_whose_time_is_up_ends_without_an_event(store: Store, run: Run) -> None:
    now = datetime.now(UTC)
    for key, seconds in {"past": -60, "future": 60}.items():
        wait = wait_for(run, key=key)
        timed = EventWait(wait.id, run.id, run.user_id, key, wait.pattern, None, 0, now + timedelta(seconds=seconds))
        await store.event_waits.open(timed)
    assert await store.event_waits.time_out(10) == 1
    assert await store.event_waits.time_out(10) == 0
    [ended] = await matched(store)
    assert (ended.key, ended.status, ended.event) == ("past", WaitStatus.TIMED_OUT, None)
    await store.bus.publish(run.user_id, [made()])
    states = {wait.key: wait.status for wait in await store.event_waits.of_run(run.id)}
    assert states == {"past": WaitStatus.TIMED_OUT, "future": WaitStatus.MATCHED}


async def test_a_run_that_waits_is_queued_again_once(store: Store, second_store: Store, run: Run) -> None:
    await stop(store, wait_for(run))
    await store.bus.publish(run.user_id, [made()])
    [wait] = await matched(store)
    woken = await asyncio.gather(store.event_waits.wake(wait), second_store.event_waits.wake(wait))
    [queued] = [each.run for each in woken if each.run is not None]
    assert (queued.status, queued.error, queued.started_at) == (RunStatus.QUEUED, None, None)
    assert await matched(store, lease=0) == []


async def test_a_run_that_has_not_stopped_yet_is_looked_at_again_later(store: Store, run: Run) -> None:
    await store.event_waits.open(wait_for(run))
    await store.bus.publish(run.user_id, [made()])
    [wait] = await matched(store, lease=0)
    assert (await store.event_waits.wake(wait)).run is None
    assert len(await matched(store, lease=0)) == 1
    await store.event_waits.settle([wait.id])
    assert await matched(store, lease=0) == []


async def test_nobody_else_gets_a_wait_before_the_lease_is_over(store: Store, second_store: Store, run: Run) -> None:
    await stop(store, wait_for(run))
    await store.bus.publish(run.user_id, [made()])
    taken = await asyncio.gather(matched(store), matched(second_store))
    assert sorted(map(len, taken)) == [0, 1]


async def test_a_run_that_was_cancelled_meanwhile_is_not_woken(store: Store, run: Run) -> None:
    await stop(store, wait_for(run))
    await store.bus.publish(run.user_id, [made()])
    [wait] = await matched(store, lease=0)
    await store.runs.cancel(run.user_id, run.id)
    assert (await store.event_waits.wake(wait)).run is None
    assert await matched(store, lease=0) == []
