"""What controllers do for agents: messages whose time is up, and turns that nobody ends or opens."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backplane.domain.agents import Agent
from backplane.domain.runs import RunStatus
from backplane.settings import fixed
from backplane.store.agents.tables import agents
from tests.agents import placed_agent, sent
from tests.integration.controller.conftest import Controllers, Platform
from tests.waiting import wait_until

PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "AGENT_REPAIR_SECONDS", 0.02)
    monkeypatch.setattr(fixed, "AGENT_REPAIR_BATCH", 2)


@pytest.fixture
async def agent(platform: Platform) -> Agent:
    return await placed_agent(platform.store, platform.user)


async def status_of(platform: Platform, run_id: str) -> RunStatus:
    return (await platform.store.runs.get(platform.user.id, run_id)).status


async def test_messages_whose_time_is_up_end_and_the_next_one_is_opened(
    platform: Platform, controllers: Controllers, agent: Agent
) -> None:
    times = (PAST, PAST, PAST, PAST, datetime.now(UTC) + timedelta(hours=1))
    ids = [(await sent(platform.store, platform.user, agent, expires_at=at)).run.id for at in times]
    for _ in range(2):
        controllers.start(platform.settings)

    async def are_over() -> bool:
        return [await status_of(platform, run_id) for run_id in ids[:4]] == [RunStatus.CANCELLED] * 4

    await wait_until(are_over)
    run = await platform.store.runs.get(platform.user.id, ids[0])
    assert run.error is not None
    assert run.error.code == "message_expired"
    assert await status_of(platform, ids[4]) is RunStatus.QUEUED


async def test_what_a_terminated_agent_leaves_behind_ends(
    platform: Platform, controllers: Controllers, agent: Agent
) -> None:
    run_id = (await sent(platform.store, platform.user, agent)).run.id
    await platform.store.agents.terminate(platform.user.id, agent.id)
    controllers.start(platform.settings)

    async def is_over() -> bool:
        return await status_of(platform, run_id) is RunStatus.CANCELLED

    await wait_until(is_over)
    run = await platform.store.runs.get(platform.user.id, run_id)
    assert run.error is not None
    assert run.error.code == "agent_terminated"


async def test_an_agent_that_names_a_message_that_is_gone_gets_its_next_one(
    platform: Platform, controllers: Controllers, agent: Agent
) -> None:
    await sent(platform.store, platform.user, agent)
    next_id = (await sent(platform.store, platform.user, agent)).run.id
    by_hand = update(agents).where(agents.c.id == agent.id).values(open_run_id="gone")
    await platform.store.database.write(lambda connection: connection.execute(by_hand))
    controllers.start(platform.settings)

    async def is_open() -> bool:
        return await status_of(platform, next_id) is RunStatus.QUEUED

    await wait_until(is_open)
