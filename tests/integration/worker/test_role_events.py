"""Events of the bus that become messages to agents, on a real worker."""

from typing import Any

import pytest

from backplane.domain.bus import cloud_event
from backplane.domain.runs import Run
from backplane.domain.stored import Stored
from backplane.resources import run_actions
from backplane.settings import fixed
from controller.agent_events import AgentEventsLoop, TurnRules
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.team import Team, team_of, working
from tests.platform.workers import Platform

LISTENS_TO = ["order.*", "run.completed"]


@pytest.fixture
async def team(platform: Platform) -> Team:
    await platform.resources.store.agent_events.listen("listener", LISTENS_TO)
    return await team_of(platform, ada="listener", bob="listener", carl="counter")


def loop_of(platform: Platform) -> AgentEventsLoop:
    actions = run_actions(platform.settings, platform.resources)
    return AgentEventsLoop(platform.resources.store, actions, TurnRules(60, 0))


async def post(platform: Platform, *events: tuple[str, str]) -> None:
    """By id and type."""
    made = [
        cloud_event({"specversion": "1.0", "id": id, "source": "/shop", "type": type, "data": {"n": id}})
        for id, type in events
    ]
    await platform.resources.store.bus.publish(platform.user.id, made)


async def deliver(platform: Platform) -> None:
    loop = loop_of(platform)
    while await loop.work():
        pass


async def mail(team: Team, name: str) -> list[Run]:
    return await team.platform.resources.store.agent_messages.of_agent(team.agents[name].id)


async def test_an_event_becomes_one_message_to_each_agent_whose_role_listens(platform: Platform, team: Team) -> None:
    await post(platform, ("1", "order.made"), ("2", "customer.made"), ("3", "order.sent"))
    async with working(team):
        await deliver(platform)
        await deliver(platform)  # another controller
        assert await mail(team, "carl") == []
        for name in ("ada", "bob"):
            ended = [await team.ended(run.id) for run in await mail(team, name)]
            answers: list[Any] = [(run.result or {}).get("value") for run in ended]
            assert [(one["from"], one["type"], one["data"]) for one in answers] == [
                ("event", "order.made", {"n": "1"}),
                ("event", "order.sent", {"n": "3"}),
            ]


async def test_agents_that_listen_to_one_anothers_ends_come_to_an_end(
    platform: Platform, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "AGENT_SEND_DEPTH_MAX", 2)
    store = platform.resources.store
    async with working(team):
        await team.answer("ada", "begin")
        for _ in range(5):
            while await store.bus.publish_notices(100):
                pass
            await deliver(platform)
            for name in ("ada", "bob"):
                for run in await mail(team, name):
                    await team.ended(run.id)
    # bob hears of ada's first, ada of what bob made of it; neither of its own, and nothing follows on the second.
    assert [len(await mail(team, name)) for name in ("ada", "bob")] == [2, 1]


async def test_agents_that_listen_to_one_another_hear_of_each_other_once_by_one_event(platform: Platform) -> None:
    """Else each end would be heard by all others, whose ends all others hear: as many as they are, to the tenth."""
    await platform.resources.store.agent_events.listen("listener", LISTENS_TO)
    team = await team_of(platform, ada="listener", bob="listener", eve="listener")
    async with working(team):
        await team.answer("ada", "begin")
        for _ in range(5):
            while await platform.resources.store.bus.publish_notices(100):
                pass
            await deliver(platform)
            for name in team.agents:
                for run in await mail(team, name):
                    await team.ended(run.id)
    assert [len(await mail(team, name)) for name in team.agents] == [3, 3, 3]


async def test_events_wait_for_room_in_a_full_mailbox_and_none_is_lost(
    platform: Platform, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "AGENT_MAILBOX_MAX", 2)
    await platform.resources.store.agents.pause(platform.user.id, team.agents["ada"].id)
    await post(platform, *((str(number), "order.made") for number in range(4)))
    await deliver(platform)
    # bob's first is open already.
    assert [len(await mail(team, name)) for name in ("ada", "bob")] == [2, 3]
    monkeypatch.setattr(fixed, "AGENT_MAILBOX_MAX", 10)
    places = platform.resources.store.agent_events
    for name in ("ada", "bob"):
        await places.passed(team.agents[name].id, 0)  # the pause is over
    await deliver(platform)
    assert [[run.input["id"] for run in await mail(team, name)] for name in ("ada", "bob")] == [list("0123")] * 2


async def test_events_wait_while_their_user_may_keep_no_more_runs(start_platform: StartPlatform) -> None:
    platform = await start_platform(user_max_runs=5)
    await platform.resources.store.agent_events.listen("listener", LISTENS_TO)
    team = await team_of(platform, ada="listener")
    storage, places = platform.resources.storage, platform.resources.store.agent_events
    await storage.count_rows({platform.user.id: Stored(runs=5, events=0)})
    await post(platform, ("1", "order.made"))
    await deliver(platform)
    assert await mail(team, "ada") == []
    await storage.count_rows({platform.user.id: Stored(runs=4, events=0)})
    await places.passed(team.agents["ada"].id, 0)  # the pause is over
    await deliver(platform)
    assert [run.input["id"] for run in await mail(team, "ada")] == ["1"]
