"""All turns of an agent in one stream: every event once, one turn after the other, whatever happens meanwhile."""

import asyncio
import random

import pytest

from app.context import ApiContext
from app.streams import hub
from backplane.domain.runs import RunStatus
from tests.integration.api.live_agents import (
    AGENTS,
    TurnFrame,
    act,
    agent_stream,
    process,
    send,
    spawn,
    take,
    turn,
)
from tests.integration.api.running import Api, Person, StartApi
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def cursors(frames: list[TurnFrame]) -> list[str]:
    return [frame.cursor for frame in frames]


async def an_agent(api: Api, person: Person) -> str:
    await process(api)
    return await spawn(person)


async def one_turn(api: Api, person: Person, agent_id: str, *lines: str) -> None:
    """A message that is answered, with these lines: events 1 to 4 and one for each line."""
    await send(person, agent_id)
    working = await turn(api, agent_id)
    if lines:
        await working.worker.say(*lines)
    await working.answer()


async def test_turns_follow_one_another_in_one_stream(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    await one_turn(api, person, agent_id, "old")
    async with agent_stream(person, agent_id) as stream:
        assert cursors(await take(stream, 5)) == ["1-1", "1-2", "1-3", "1-4", "1-5"]
        await one_turn(api, person, agent_id, "new")
        frames = await take(stream, 5)
    assert cursors(frames) == ["2-1", "2-2", "2-3", "2-4", "2-5"]
    assert [frame.type for frame in frames] == ["status", "status", "log", "status", "end"]


async def test_a_reader_that_comes_back_goes_on_behind_its_last_event(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    await one_turn(api, person, agent_id, "a")
    await one_turn(api, person, agent_id, "b")
    for last, following in (("1-3", "1-4"), ("1-5", "2-1"), ("2-2", "2-3")):
        async with agent_stream(person, agent_id, last_event_id=last) as stream:
            assert cursors(await take(stream, 1)) == [following]


async def test_a_reader_that_wants_what_comes_gets_no_history(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    await one_turn(api, person, agent_id)
    async with agent_stream(person, agent_id, after="now") as stream:
        assert cursors(await take(stream, 1)) == ["1-4"]  # its place alone
        await one_turn(api, person, agent_id)
        assert cursors(await take(stream, 2)) == ["2-1", "2-2"]


@pytest.mark.slow
async def test_now_is_within_the_turn_that_is_under_way(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    await send(person, agent_id)
    working = await turn(api, agent_id)
    await send(person, agent_id)
    async with agent_stream(person, agent_id, after="now") as stream:
        assert cursors(await take(stream, 1)) == ["1-2"]
        await working.worker.say("a")
        assert cursors(await take(stream, 1)) == ["1-3"]


async def test_messages_in_the_mailbox_come_when_the_turn_before_them_is_over(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    for _ in range(3):
        await send(person, agent_id)
    async with agent_stream(person, agent_id) as stream:
        for _ in range(3):
            await (await turn(api, agent_id)).answer()
        frames = await take(stream, 4 + 5 + 5)
    assert cursors(frames) == [
        f"{of}-{number}" for of, last in ((1, 4), (2, 5), (3, 5)) for number in range(1, last + 1)
    ]


@pytest.mark.slow
async def test_a_message_that_is_cancelled_in_the_mailbox_ends_in_its_turn(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    await send(person, agent_id)
    second = await send(person, agent_id)
    async with agent_stream(person, agent_id) as stream:
        await take(stream, 2)
        await person.act("cancel", second["run_id"])
        await (await turn(api, agent_id)).answer()
        frames = await take(stream, 6)
    assert cursors(frames) == ["1-3", "1-4", "2-1", "2-2", "2-3", "2-4"]
    assert frames[-1].data["status"] == "cancelled"


async def test_the_last_turn_that_is_retried_goes_on_in_the_stream(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    sent = await send(person, agent_id)
    async with agent_stream(person, agent_id) as stream:
        await (await turn(api, agent_id)).answer(status=RunStatus.FAILED)
        assert cursors(await take(stream, 4)) == ["1-1", "1-2", "1-3", "1-4"]
        await person.act("retry", sent["run_id"])
        await (await turn(api, agent_id)).answer()
        assert cursors(await take(stream, 3)) == ["1-5", "1-6", "1-7"]
        await one_turn(api, person, agent_id)
        assert cursors(await take(stream, 1)) == ["2-1"]


@pytest.mark.parametrize("last", ["9-1", "1-99"])
@pytest.mark.slow
async def test_a_cursor_that_was_never_given_gets_a_gap_and_what_comes(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr("app.streams.sse.CATCH_UP_LOOKS", 1)
    agent_id = await an_agent(api, person)
    await send(person, agent_id)
    working = await turn(api, agent_id)
    async with agent_stream(person, agent_id, last_event_id=last) as stream:
        [gap] = await take(stream, 1)
        assert (gap.cursor, gap.type, last in gap.data["reason"]) == ("1-2", "gap", True)
        await working.answer()
        assert cursors(await take(stream, 2)) == ["1-3", "1-4"]


@pytest.mark.parametrize("last", ["1", "1-", "-1", "1-2-3", "a-b", "1-99999999999", "\u0661-1", "-0-1"])
async def test_a_cursor_that_is_none_is_refused_by_its_name(api: Api, person: Person, last: str) -> None:
    agent_id = await spawn(person)
    path = f"{AGENTS}/{agent_id}/stream"
    answer = await person.http.get(path, params={"after": last})
    assert (answer.status_code, answer.json()["field"]) == (422, "after")
    refused = await person.http.get(path, headers={b"Last-Event-ID": last.encode()})
    assert (refused.status_code, refused.json()["field"]) == (422, "Last-Event-ID")


async def test_turns_of_other_agents_are_not_in_the_stream(api: Api, person: Person) -> None:
    one, other = await an_agent(api, person), await spawn(person, "other")
    async with agent_stream(person, one) as stream:
        await one_turn(api, person, other)
        await one_turn(api, person, one)
        frames = await take(stream, 4)
    assert len({frame.run_id for frame in frames}) == 1


@pytest.mark.slow
async def test_a_message_that_redis_did_not_announce_is_found_at_the_next_heartbeat(
    start_api: StartApi, redis_server: RedisServer
) -> None:
    api = await start_api(redis_url=redis_server.url, stream_heartbeat_seconds=0.2)
    person = await api.person()
    agent_id = await an_agent(api, person)
    async with agent_stream(person, agent_id) as stream:
        context: ApiContext = api.app.state.context
        await wait_until(lambda: context.hub.watchers)
        redis_server.stop()
        await send(person, agent_id)
        redis_server.start()
        assert cursors(await take(stream, 2)) == ["1-1", "1-2"]


@pytest.mark.slow
async def test_an_agent_that_nobody_watches_any_more_is_listened_to_anew_by_the_next(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LINGER_SECONDS", 0.05)
    api = await start_api()
    person = await api.person()
    agent_id = await an_agent(api, person)
    context: ApiContext = api.app.state.context
    user = (await person.access(api)).user
    old = await context.hub.open_mailbox(user, agent_id)
    feed = await context.hub.open_feed(user)
    await wait_until(lambda: old.swept and feed.swept)
    async with agent_stream(person, agent_id) as stream:
        await one_turn(api, person, agent_id)
        assert cursors(await take(stream, 4)) == ["1-1", "1-2", "1-3", "1-4"]


@pytest.mark.slow
async def test_streams_of_agents_count_as_streams_of_their_user(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_user_max=1)
    person = await api.person()
    agent_id = await an_agent(api, person)
    context: ApiContext = api.app.state.context
    async with agent_stream(person, agent_id) as stream:
        await wait_until(lambda: context.hub.watchers)
        refused = await person.http.get(f"{AGENTS}/{agent_id}/stream")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        # The one that is open comes to the next turn, although there is room for no other.
        await one_turn(api, person, agent_id)
        assert cursors(await take(stream, 4)) == ["1-1", "1-2", "1-3", "1-4"]


@pytest.mark.slow
async def test_a_stream_of_a_terminated_agent_shows_its_turns(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    await one_turn(api, person, agent_id)
    await act(person, agent_id, "terminate")
    async with agent_stream(person, agent_id) as stream:
        assert cursors(await take(stream, 4)) == ["1-1", "1-2", "1-3", "1-4"]


@pytest.mark.slow
async def test_readers_that_come_and_go_miss_nothing_and_get_nothing_twice(api: Api, person: Person) -> None:
    agent_id = await an_agent(api, person)
    draw, turns = random.Random(4711), 12

    async def work() -> None:
        for _ in range(turns):
            await one_turn(api, person, agent_id, *("line" for _ in range(draw.randrange(1, 6))))

    async def read() -> list[str]:
        seen: list[str] = []
        ends = 0
        while ends < turns:
            left = draw.randrange(1, 5)
            async with agent_stream(person, agent_id, last_event_id=seen[-1] if seen else None) as stream:
                while left and ends < turns:
                    [frame] = await take(stream, 1)
                    seen.append(frame.cursor)
                    left, ends = left - 1, ends + (frame.type == "end")
        return seen

    working = asyncio.create_task(work())
    readers = await asyncio.gather(*(read() for _ in range(3)))
    await working
    page = (await person.http.get(f"{AGENTS}/{agent_id}/messages", params={"oldest_first": "true"})).json()
    expected = []
    for message in page["messages"]:
        events = (await person.http.get(f"/agent/logs/{message['run_id']}")).json()["events"]
        expected += [f"{message['turn']}-{event['id']}" for event in events]
    assert readers == [expected] * 3
