"""The stream of the event bus: every event once and in order, whatever happens to Redis and to the API."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backplane.settings import fixed
from tests.integration.api.running import LONGEST_WAIT_SECONDS, Api, Frame, Person, StartApi, frames
from tests.servers import RedisServer
from tests.waiting import wait_until

EVENTS = "/api/v1/events"


def event(id: int, type: str = "order.created", **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": str(id), "source": "/shop", "type": type, **more}


async def post(person: Person, *events: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    answer = await person.http.post(EVENTS, json=list(events), headers=headers)
    assert answer.status_code in (200, 201), answer.text


@asynccontextmanager
async def stream(person: Person, last_event_id: int | None = None, **parameters: Any) -> AsyncIterator[Any]:
    """Takes the next numbered frames: `await take(3)`."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    async with (
        asyncio.timeout(LONGEST_WAIT_SECONDS),
        person.http.stream("GET", f"{EVENTS}/stream", headers=headers, params=parameters) as response,
    ):
        assert response.status_code == 200, await response.aread()
        received = frames(response)

        async def take(count: int) -> list[Frame]:
            found: list[Frame] = []
            while len(found) < count:
                frame = await anext(received)
                if frame.id is not None:
                    found.append(frame)
            return found

        yield take


def elsewhere(api: Api, person: Person) -> Person:
    """The same person at another API process."""
    return Person(api.client({"Authorization": f"Bearer {person.token}"}), person.token, person.token_id)


async def test_a_stream_has_what_is_kept_and_then_what_comes(api: Api, person: Person) -> None:
    await post(person, event(1), event(2))
    async with stream(person) as take:
        seen = await take(2)
        await post(person, event(3, data={"a": 1}))
        seen += await take(1)
    assert [(frame.id, frame.event) for frame in seen] == [
        (1, "order.created"),
        (2, "order.created"),
        (3, "order.created"),
    ]
    assert seen[-1].body == event(3, data={"a": 1})


async def test_a_stream_has_what_its_filter_wants_and_nothing_of_others(api: Api, person: Person) -> None:
    other = await api.person()
    async with stream(person, type="order.*") as orders, stream(person, type="till.*") as tills:
        await post(other, event(1))
        await post(person, event(1), event(2, "till.closed"), event(3))
        assert [frame.id for frame in await orders(2)] == [1, 3]
        assert [frame.id for frame in await tills(1)] == [2]


@pytest.mark.slow
async def test_a_stream_goes_on_behind_the_last_event_at_another_api(start_api: StartApi) -> None:
    first = await start_api()
    person = await first.person()
    async with stream(person) as take:
        await post(person, event(1))
        await take(1)
    await post(person, event(2))
    other = elsewhere(await start_api(), person)
    async with stream(other, last_event_id=1) as take:
        assert [frame.id for frame in await take(1)] == [2]
        await post(person, event(3))
        assert [frame.id for frame in await take(1)] == [3], "announced by the other process"


async def test_now_is_where_a_stream_begins(api: Api, person: Person) -> None:
    await post(person, event(1))
    async with stream(person, after="now") as take:
        [begin] = await take(1)
        assert (begin.id, begin.event) == (1, "")
        await post(person, event(2))
        assert [frame.id for frame in await take(1)] == [2]


async def test_a_cursor_that_was_never_given_is_reported_and_the_stream_goes_on(api: Api, person: Person) -> None:
    await post(person, event(1))
    async with stream(person, last_event_id=99) as take:
        [gap] = await take(1)
        assert (gap.id, gap.event, gap.body["after"]) == (1, "gap", 99)
        await post(person, event(2))
        assert [frame.id for frame in await take(1)] == [2]


async def test_events_are_taken_and_read_while_redis_is_away_and_after_it_came_back_empty(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url, stream_heartbeat_seconds=0.2)
    person = await api.person()
    async with stream(person) as take:
        await post(person, event(1))
        seen = await take(1)
        server.kill()
        await post(person, event(2), event(3))
        seen += await take(2)
        server.start()
        await post(person, event(4))
        seen += await take(1)
    assert [frame.id for frame in seen] == [1, 2, 3, 4]
    text = (await person.http.get("/metrics")).text
    assert 'agent_bus_announcements_total{result="missed"}' in text


async def test_one_connection_to_redis_serves_all_streams_and_is_left_when_nobody_watches(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.streams.hub.LINGER_SECONDS", 0.05)
    api = await start_api()
    person = await api.person()
    redis: Any = api.resources.redis.commands

    async def channels() -> int:
        return len(await redis.pubsub_channels("*agent:bus:*"))

    def buffers() -> int:
        return len(api.app.state.context.hub._buses)

    async with stream(person, type="a") as a, stream(person, type="b") as b, stream(person, type="b"):
        await post(person, event(1, "a"), event(2, "b"))
        await a(1), await b(1)
        assert await channels() == 1
        assert buffers() == 2
    await wait_until(lambda: buffers() == 0)
    assert await channels() == 0


@pytest.mark.slow
async def test_nothing_is_missed_or_repeated_by_slow_readers_of_two_apis_under_many_writers(
    start_api: StartApi, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "STREAM_RING_EVENTS", 8)
    apis = [await start_api(database_url=postgres_database) for _ in range(2)]
    person = await apis[0].person()
    people = [elsewhere(api, person) for api in apis]

    async def write(writer: int) -> None:
        for number in range(25):
            one = event(number * 10 + writer)
            await post(people[(number + writer) % 2], one, event(1000 + number * 10 + writer, "till.closed"))
            await post(people[number % 2], one)

    async def read(reader: Person, pause: float, **parameters: Any) -> list[int]:
        seen: list[int] = []
        while len(seen) < (100 if parameters else 200):
            async with stream(reader, last_event_id=seen[-1] if seen else None, **parameters) as take:
                for _ in range(50):
                    seen += [frame.id for frame in await take(1)]
                    await asyncio.sleep(pause)
        return seen

    readers = [read(people[0], 0.001), read(people[1], 0.0), read(people[1], 0.01), read(people[0], 0, type="order.*")]
    results = await asyncio.gather(*readers, *(write(writer) for writer in range(4)))
    for seen in results[:3]:
        assert seen == list(range(1, 201))
    assert len(results[3] or []) == 100
    assert results[3] == sorted(results[3] or [])
