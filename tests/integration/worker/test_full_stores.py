"""Runs and messages that code makes for a user who keeps as many runs as a user may."""

from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.runs import RunStatus
from backplane.domain.schedules import NewSchedule, Schedule, ScheduleOverlap, Timing
from backplane.domain.steps import StepStatus
from backplane.domain.stored import Stored
from backplane.errors import StorageExceeded
from backplane.resources import run_actions
from controller.agent_events import TurnRules
from controller.schedules import send_scheduled
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.team import team_of, working
from tests.integration.worker.test_handlers import handling, submit, value_of
from tests.platform.workers import Platform

MOST = 5
REFUSED = f"storage_quota_exceeded: you have {MOST} runs, and {MOST} may be kept (USER_MAX_RUNS)"


@pytest.fixture
async def platform(start_platform: StartPlatform) -> Platform:
    return await start_platform(user_max_runs=MOST)


async def keeps(platform: Platform, runs: int) -> None:
    await platform.resources.storage.count_rows({platform.user.id: Stored(runs=runs, events=0)})


async def begun_in_time(platform: Platform, name: str, given: Any, **values: Any) -> str:
    """A run that was made before the store was full."""
    run_id = await submit(platform, name, given, **values)
    await keeps(platform, MOST)
    return run_id


async def made_by(platform: Platform, run_id: str) -> list[str]:
    """What is kept of the user beside this run."""
    return [run.id for run in await platform.resources.store.runs.page(platform.user.id) if run.id != run_id]


async def test_a_handler_of_a_user_with_room_for_one_more_starts_a_run(platform: Platform) -> None:
    await keeps(platform, MOST - 1)
    run_id = await submit(platform, "starts-or-says-why-not", "no-input")
    async with handling(platform):
        assert [value_of(await platform.completed(run_id))] == await made_by(platform, run_id)


async def test_a_handler_of_a_user_without_room_starts_none_and_may_catch_it(platform: Platform) -> None:
    run_id = await begun_in_time(platform, "starts-or-says-why-not", "no-input")
    async with handling(platform):
        assert value_of(await platform.completed(run_id)).startswith(REFUSED)
    assert await made_by(platform, run_id) == []


async def test_a_handler_that_could_start_none_goes_on_by_a_retry_once_there_is_room(platform: Platform) -> None:
    run_id = await begun_in_time(platform, "starts-many", {"count": 1}, max_retries=0)
    async with handling(platform):
        failed = await platform.until(run_id, RunStatus.FAILED)
        assert failed.error is not None
        assert failed.error.code == "storage_quota_exceeded"
        await keeps(platform, MOST - 1)
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=None)
        await platform.completed(run_id)
    assert len(await made_by(platform, run_id)) == 1


@pytest.mark.parametrize("do", ["send", "ask"])
async def test_an_agent_of_a_user_with_room_for_one_more_sends_a_message(platform: Platform, do: str) -> None:
    await keeps(platform, MOST - 1)
    async with working(await team_of(platform, ada="scripted", bob="scripted")) as team:
        run_id = await team.sent("ada", data={"do": do, "agent": "bob", "options": {}})
        await platform.completed(run_id)
        [message] = await made_by(platform, run_id)
        assert (await team.ended(message)).agent_id == team.agents["bob"].id


@pytest.mark.parametrize("do", ["send", "ask"])
async def test_an_agent_of_a_user_without_room_sends_nothing_and_may_catch_it(platform: Platform, do: str) -> None:
    await keeps(platform, MOST)
    async with working(await team_of(platform, ada="scripted", bob="scripted")) as team:
        run_id = await team.sent("ada", data={"do": do, "agent": "bob", "options": {}})
        assert value_of(await platform.completed(run_id)).startswith(REFUSED)
    assert await made_by(platform, run_id) == []
    assert [step.status for step in await platform.journal(run_id)] == [StepStatus.FAILED]


async def fired(platform: Platform, schedule: Schedule, hour: int) -> str:
    """The run of this hour's message."""
    store, actions = platform.resources.store, run_actions(platform.settings, platform.resources)
    return await send_scheduled(store, actions, TurnRules(60, 0), schedule, datetime(2020, 1, 1, hour, tzinfo=UTC))


async def test_a_schedule_of_a_user_without_room_sends_nothing_but_knows_what_it_has_sent(platform: Platform) -> None:
    """A controller may be killed between the message and the note of it."""
    team = await team_of(platform, ada="scripted")
    timing = Timing(since=datetime(2020, 1, 1, tzinfo=UTC), cron="0 * * * *")
    new = NewSchedule(team.agents["ada"].id, timing, "hello", None, ScheduleOverlap.QUEUE)
    schedule, _ = await platform.resources.store.schedules.put(platform.user.id, "hourly", new, most=5)
    sent = await fired(platform, schedule, hour=9)
    await keeps(platform, MOST)
    assert await fired(platform, schedule, hour=9) == sent
    with pytest.raises(StorageExceeded):
        await fired(platform, schedule, hour=10)
    assert await made_by(platform, sent) == []
