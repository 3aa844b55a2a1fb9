"""What controllers make of schedules: messages to agents, each time once."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backplane.domain.agents import Agent
from backplane.domain.runs import Run
from backplane.domain.schedules import NewSchedule, Schedule, ScheduleOutcome, ScheduleOverlap, Timing
from backplane.settings import fixed
from backplane.store.agents.tables import schedules
from tests.agents import placed_agent, sent
from tests.integration.controller.conftest import Controllers, Platform
from tests.waiting import wait_until

PAST = datetime(2020, 1, 1, 9, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "SCHEDULES_POLL_SECONDS", 0.02)


@pytest.fixture
async def agent(platform: Platform) -> Agent:
    return await placed_agent(platform.store, platform.user)


async def scheduled(platform: Platform, agent: Agent, overlap: ScheduleOverlap = ScheduleOverlap.SKIP) -> Schedule:
    """A schedule that is due since 2020, and then at the end of the year."""
    new = NewSchedule(agent.id, Timing(since=PAST, cron="59 23 31 12 *"), "Write the report.", {"week": 1}, overlap)
    made, _ = await platform.store.schedules.put(platform.user.id, "weekly", new, most=5)
    await make_due(platform, made, PAST)
    return made


async def make_due(platform: Platform, made: Schedule, at: datetime) -> None:
    statement = update(schedules).where(schedules.c.id == made.id).values(next_at=at, look_at=at)
    await platform.store.database.write(lambda connection: connection.execute(statement))


async def outcome(platform: Platform, at: datetime = PAST) -> Schedule:
    """What became of this time."""

    async def is_there() -> bool:
        return (await platform.store.schedules.get(platform.user.id, "weekly")).last_at == at

    await wait_until(is_there)
    return await platform.store.schedules.get(platform.user.id, "weekly")


async def mail(platform: Platform, agent: Agent) -> list[Run]:
    return await platform.store.agent_messages.of_agent(agent.id, limit=200)


async def test_a_time_becomes_one_message_however_many_controllers_there_are(
    platform: Platform, controllers: Controllers, agent: Agent
) -> None:
    made = await scheduled(platform, agent)
    for _ in range(3):
        controllers.start(platform.settings)
    after = await outcome(platform)
    [message] = await mail(platform, agent)
    assert (message.prompt, message.input) == ("Write the report.", {"week": 1})
    assert (message.origin or {}).items() >= {("kind", "schedule"), ("name", "weekly"), ("id", made.id)}
    assert (after.last_outcome, after.last_run_id, after.sent) == (ScheduleOutcome.SENT, message.id, 1)
    assert after.next_at is not None
    assert after.next_at > datetime.now(UTC)


async def test_a_schedule_that_a_controller_cannot_read_delays_no_other(
    platform: Platform, controllers: Controllers, agent: Agent
) -> None:
    unread = NewSchedule(agent.id, Timing(since=PAST, cron="59 23 31 12 *"), "Look.", None)
    odd, _ = await platform.store.schedules.put(platform.user.id, "odd", unread, most=5)
    await make_due(platform, odd, PAST - timedelta(days=1))
    timing = {**Timing(since=PAST, cron="59 23 31 12 *").as_dict(), "timezone": "Gone/Zone"}
    statement = update(schedules).where(schedules.c.id == odd.id).values(timing=timing)
    await platform.store.database.write(lambda connection: connection.execute(statement))
    await scheduled(platform, agent)
    controllers.start(platform.settings)
    assert (await outcome(platform)).last_outcome is ScheduleOutcome.SENT
    assert len(await mail(platform, agent)) == 2, "also that of the other, whose next time is not known"


@pytest.mark.parametrize(("overlap", "messages"), [(ScheduleOverlap.SKIP, 1), (ScheduleOverlap.QUEUE, 2)])
async def test_a_time_at_which_the_message_before_is_not_over_is_left_out_unless_it_is_to_queue(
    platform: Platform, controllers: Controllers, agent: Agent, overlap: ScheduleOverlap, messages: int
) -> None:
    made = await scheduled(platform, agent, overlap)
    controllers.start(platform.settings)
    await outcome(platform)
    second = PAST.replace(hour=10)
    await make_due(platform, made, second)
    after = await outcome(platform, second)
    assert after.last_outcome is (ScheduleOutcome.SKIPPED if overlap is ScheduleOverlap.SKIP else ScheduleOutcome.SENT)
    assert (len(await mail(platform, agent)), after.sent) == (messages, messages)


async def test_a_full_mailbox_gets_its_message_when_there_is_room(
    platform: Platform, controllers: Controllers, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "AGENT_MAILBOX_MAX", 1)
    monkeypatch.setattr("backplane.store.agents.messages.MAILBOX_RETRY_SECONDS", 0.02)
    for _ in range(2):
        await sent(platform.store, platform.user, agent)
    await scheduled(platform, agent)
    controllers.start(platform.settings)
    monkeypatch.setattr(fixed, "AGENT_MAILBOX_MAX", 2)
    assert (await outcome(platform)).last_outcome is ScheduleOutcome.SENT
    assert [run.prompt for run in await mail(platform, agent)] == ["hello", "hello", "Write the report."]


async def test_an_agent_that_was_terminated_gets_none_and_the_schedule_ends(
    platform: Platform, controllers: Controllers, agent: Agent
) -> None:
    await scheduled(platform, agent)
    await platform.store.agents.terminate(platform.user.id, agent.id)
    controllers.start(platform.settings)
    after = await outcome(platform)
    assert (after.last_outcome, after.next_at) == (ScheduleOutcome.AGENT_TERMINATED, None)
    assert await mail(platform, agent) == []
