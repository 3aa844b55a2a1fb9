"""Schedules in the store, on each database."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backplane.domain.agents import Agent
from backplane.domain.schedules import NewSchedule, Schedule, ScheduleOutcome, Timing
from backplane.domain.users import User
from backplane.errors import NotFound, TooLarge
from backplane.store import Store
from backplane.store.agents.tables import schedules
from tests.agents import spawned

PAST = datetime(2020, 1, 1, 9, tzinfo=UTC)
HOURLY = Timing(since=PAST, cron="0 * * * *")


@pytest.fixture
async def agent(store: Store, user: User) -> Agent:
    return await spawned(store, user)


async def put(store: Store, agent: Agent, name: str = "weekly", timing: Timing = HOURLY, most: int = 5) -> Schedule:
    made, _ = await store.schedules.put(agent.user_id, name, NewSchedule(agent.id, timing, "hello"), most=most)
    return made


async def made_due(store: Store, made: Schedule, at: datetime = PAST) -> Schedule:
    statement = update(schedules).where(schedules.c.id == made.id).values(next_at=at, look_at=at)
    await store.database.write(lambda connection: connection.execute(statement))
    return replace(made, next_at=at)


async def test_a_schedule_is_made_changed_and_deleted_under_its_name(store: Store, user: User, agent: Agent) -> None:
    before = datetime.now(UTC)
    made = await put(store, agent)
    assert made.next_at is not None
    assert before < made.next_at <= before + timedelta(hours=1, seconds=5)
    assert await store.schedules.list_of(user.id) == [made]
    new = NewSchedule(agent.id, replace(HOURLY, cron="30 * * * *"), "other", {"a": 1})
    changed, is_new = await store.schedules.put(user.id, "weekly", new, most=1)
    assert (changed.id, changed.given, is_new) == (made.id, new, False)
    assert await store.schedules.get(user.id, "weekly") == changed
    await store.schedules.delete(user.id, "weekly")
    with pytest.raises(NotFound):
        await store.schedules.get(user.id, "weekly")


async def test_a_schedule_is_its_users_alone(store: Store, user: User, stranger: User, agent: Agent) -> None:
    made = await put(store, agent)
    theirs = store.schedules
    for call in (theirs.get, theirs.delete, theirs.pause, theirs.resume):
        with pytest.raises(NotFound):
            await call(stranger.id, "weekly")
    assert await store.schedules.get(user.id, "weekly") == made


async def test_there_are_no_more_than_so_many_also_when_they_come_at_once(store: Store, agent: Agent) -> None:
    puts = (put(store, agent, f"s{number}", most=3) for number in range(6))
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(result, TooLarge) for result in done) == 3


async def test_one_that_is_paused_is_never_due_and_goes_on_with_the_next_time(
    store: Store, user: User, agent: Agent
) -> None:
    made = await made_due(store, await put(store, agent))
    assert [one.id for one in await store.schedules.due(10)] == [made.id]
    paused = await store.schedules.pause(user.id, "weekly")
    assert (paused.next_at, await store.schedules.due(10)) == (None, [])
    assert (await store.schedules.pause(user.id, "weekly")).paused_at == paused.paused_at
    assert (await put(store, agent)).next_at is None
    resumed = await store.schedules.resume(user.id, "weekly")
    assert resumed.next_at is not None
    assert resumed.next_at > datetime.now(UTC)


async def test_a_time_is_dealt_with_once_and_of_missed_ones_none_comes_after_it(
    store: Store, user: User, agent: Agent
) -> None:
    made = await made_due(store, await put(store, agent))
    for _ in range(2):  # the other one is a controller that read it at the same moment
        await store.schedules.fired(made, ScheduleOutcome.SENT, "run 1")
    now = await store.schedules.get(user.id, "weekly")
    assert (now.last_at, now.last_outcome, now.last_run_id, now.sent) == (PAST, ScheduleOutcome.SENT, "run 1", 1)
    assert now.next_at is not None
    assert now.next_at > datetime.now(UTC)


async def test_that_a_message_was_sent_counts_also_where_another_controller_left_the_time_out(
    store: Store, user: User, agent: Agent
) -> None:
    made = await made_due(store, await put(store, agent))
    await store.schedules.fired(made, ScheduleOutcome.SKIPPED)
    await store.schedules.fired(made, ScheduleOutcome.SENT, "run 1")
    now = await store.schedules.get(user.id, "weekly")
    assert (now.last_outcome, now.last_run_id, now.sent) == (ScheduleOutcome.SENT, "run 1", 1)


async def test_one_that_was_changed_meanwhile_keeps_its_new_time(store: Store, user: User, agent: Agent) -> None:
    old = await made_due(store, await put(store, agent))
    new = await put(store, agent, timing=replace(HOURLY, cron="0 0 1 1 *"))
    await store.schedules.fired(old, ScheduleOutcome.SENT, "run 1")
    assert (await store.schedules.get(user.id, "weekly")).next_at == new.next_at


@pytest.mark.parametrize(
    ("timing", "outcome"),
    [(Timing(since=PAST, at=PAST), ScheduleOutcome.SENT), (HOURLY, ScheduleOutcome.AGENT_TERMINATED)],
    ids=["once", "an agent that was terminated"],
)
async def test_where_no_time_is_left_there_is_no_next_one(
    store: Store, user: User, agent: Agent, timing: Timing, outcome: ScheduleOutcome
) -> None:
    made = await made_due(store, await put(store, agent, timing=timing))
    await store.schedules.fired(made, outcome)
    assert (await store.schedules.get(user.id, "weekly")).next_at is None


async def test_one_that_is_put_off_is_due_later_for_the_same_time(store: Store, user: User, agent: Agent) -> None:
    made = await made_due(store, await put(store, agent))
    await store.schedules.put_off(made, 60.0)
    assert await store.schedules.due(10) == []
    assert (await store.schedules.get(user.id, "weekly")).next_at == PAST


async def test_schedules_go_with_their_agent(store: Store, user: User, agent: Agent) -> None:
    await put(store, agent)
    await store.agents.terminate(user.id, agent.id)
    await store.agents.delete(user.id, agent.id)
    assert await store.schedules.list_of(user.id) == []
