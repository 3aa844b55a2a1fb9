"""What controllers do for the event bus: events of runs, runs that are woken, and the end of old events."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backplane.domain.bus import EventFilter, EventWait, cloud_event
from backplane.domain.runs import Run, RunError, RunStatus, new_run_id
from backplane.settings import fixed
from backplane.store.bus.tables import bus_events
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.submitted import new_run
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "BUS_POLL_SECONDS", 0.02)
    monkeypatch.setattr(fixed, "BUS_WAKE_SECONDS", 0.1)
    monkeypatch.setattr(fixed, "BUS_BATCH", 3)


async def types(platform: Platform) -> list[str]:
    page = await platform.store.bus.page(platform.user.id, 0, 100, EventFilter())
    return [event.type for event in page.events]


async def waiting_run(platform: Platform, *, seconds: float | None = None) -> Run:
    run = await platform.store.runs.create(new_run(platform.user), start=True)
    await platform.store.running_runs.take(run.id, 1)
    until = datetime.now(UTC) + timedelta(seconds=seconds) if seconds is not None else None
    wait = EventWait(new_run_id(), run.id, platform.user.id, "s1", "order.*", None, 0, until)
    stopped = RunError("event_required", "the run waits for an event")
    await platform.store.running_runs.write(run.id, 1, lambda log: log.wait_for_event(wait, stopped))
    return run


async def is_queued(platform: Platform, run: Run) -> bool:
    return (await platform.store.runs.get(platform.user.id, run.id)).status is RunStatus.QUEUED


async def count_is(platform: Platform, count: int) -> bool:
    return len(await types(platform)) == count


async def test_each_end_of_a_run_is_one_event_however_many_controllers_look(
    platform: Platform, controllers: Controllers
) -> None:
    for _ in range(2):
        controllers.start(platform.settings)
    for status in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.COMPLETED):
        await platform.ended_run(None, status)
    await wait_until(lambda: count_is(platform, 4))
    assert sorted(await types(platform)) == ["run.cancelled", "run.completed", "run.completed", "run.failed"]
    assert await platform.store.bus.publish_notices(10) == []


@pytest.mark.slow
async def test_ends_of_runs_while_no_controller_ran_become_events_when_one_does(
    platform: Platform, controllers: Controllers
) -> None:
    for _ in range(7):
        await platform.ended_run(None)
    controllers.start(platform.settings)
    await wait_until(lambda: count_is(platform, 7))


async def test_runs_go_on_when_their_event_comes_also_where_redis_is_away(
    platform: Platform, controllers: Controllers
) -> None:
    """These controllers have no Redis at all: the reaper of a worker pushes what they queue."""
    runs = [await waiting_run(platform) for _ in range(5)]
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid"}
    await platform.store.bus.publish(platform.user.id, [cloud_event(event)])
    controllers.start(platform.settings)
    for run in runs:
        await wait_until(lambda run=run: is_queued(platform, run))  # type: ignore[misc]


async def test_a_run_goes_on_when_its_time_is_up(platform: Platform, controllers: Controllers) -> None:
    past, future = await waiting_run(platform, seconds=0.0), await waiting_run(platform, seconds=60)
    controllers.start(platform.settings)
    await wait_until(lambda: is_queued(platform, past))
    assert not await is_queued(platform, future)


async def test_old_events_go_and_younger_ones_stay(start_platform: StartPlatform, controllers: Controllers) -> None:
    platform = await start_platform(retention_bus_days=7)
    for number, days in enumerate((8, 8, 6), 1):
        event = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": f"order.n{number}"}
        await platform.store.bus.publish(platform.user.id, [cloud_event(event)])
        aged = update(bus_events).where(bus_events.c.cursor == number)
        aged = aged.values(stored_at=datetime.now(UTC) - timedelta(days=days))
        await platform.store.database.write(lambda connection, aged=aged: connection.execute(aged))  # type: ignore[misc]
    controllers.start(platform.settings)
    await wait_until(lambda: count_is(platform, 1))
    assert await types(platform) == ["order.n3"]


@pytest.mark.slow
async def test_nothing_goes_where_retention_is_off(start_platform: StartPlatform, controllers: Controllers) -> None:
    platform = await start_platform(retention_bus_days=0)
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.old"}
    await platform.store.bus.publish(platform.user.id, [cloud_event(event)])
    aged = update(bus_events).values(stored_at=datetime.now(UTC) - timedelta(days=1000))
    await platform.store.database.write(lambda connection: connection.execute(aged))
    task = controllers.start(platform.settings)
    await platform.ended_run(None)
    await wait_until(lambda: count_is(platform, 2))
    assert not task.done()
