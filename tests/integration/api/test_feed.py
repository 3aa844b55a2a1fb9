"""The stream of all of a user's runs: every stored event once, in order within its run, whatever happens meanwhile."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from backplane.domain.events import EventType
from backplane.settings import fixed
from tests.integration.api.running import LONGEST_WAIT_SECONDS, Api, Person, StartApi, WorkerByHand
from tests.servers import RedisServer
from tests.waiting import wait_until


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """A frame: its cursor, and of the event in it the run, the number and the type."""

    cursor: str
    run_id: str
    id: int
    type: str
    data: Any


@asynccontextmanager
async def feed(
    person: Person, *, after: str | None = None, last_event_id: str | None = None
) -> AsyncIterator[AsyncIterator[FeedEvent]]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    parameters = {"after": after} if after else {}
    async with (
        asyncio.timeout(LONGEST_WAIT_SECONDS),
        person.http.stream("GET", "/agent/events", headers=headers, params=parameters) as response,
    ):
        assert response.status_code == 200, await response.aread()

        async def published() -> AsyncIterator[FeedEvent]:
            rest = b""
            async for chunk in response.aiter_raw():
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
                    if "" not in fields:
                        event = json.loads(fields.get("data", '{"run_id": "", "id": 0, "data": null}'))
                        cursor, type = fields.get("id", ""), fields.get("event", "")
                        yield FeedEvent(cursor, event["run_id"], event["id"], type, event["data"])

        yield published()


async def take(stream: AsyncIterator[FeedEvent], count: int) -> list[FeedEvent]:
    """The next numbered ones."""
    seen: list[FeedEvent] = []
    async for published in stream:
        if published.cursor:
            seen.append(published)
            if len(seen) == count:
                return seen
    raise AssertionError(f"the stream ended after {seen}")


def numbers(published: list[FeedEvent], run_id: str) -> list[int]:
    return [one.id for one in published if one.run_id == run_id]


async def a_worker(api: Api, person: Person) -> WorkerByHand:
    await person.make()
    return await api.worker()


async def test_a_feed_has_the_events_of_all_runs_of_its_user(api: Api, person: Person) -> None:
    first, second = await a_worker(api, person), await a_worker(api, person)
    async with feed(person) as stream:
        await take(stream, 4)
        await first.say("one")
        await second.say("two")
        await first.end()
        await second.end()
        published = await take(stream, 6)
    assert numbers(published, first.run_id) == numbers(published, second.run_id) == [3, 4, 5]


async def test_a_feed_opened_late_has_the_whole_history(api: Api, person: Person) -> None:
    worker = await a_worker(api, person)
    await worker.say(*(f"line {count}" for count in range(1200)))
    await worker.end()
    async with feed(person) as stream:
        published = await take(stream, 1204)
    assert numbers(published, worker.run_id) == list(range(1, 1205))
    assert len({one.cursor for one in published}) == 1204


async def test_events_of_others_are_in_no_feed(api: Api, person: Person) -> None:
    other = await api.person()
    async with feed(person) as stream, feed(other) as others:
        theirs, own = await a_worker(api, other), await a_worker(api, person)
        for worker in (theirs, own):
            await worker.say("hello")
            await worker.end()
        assert {one.run_id for one in await take(stream, 5)} == {own.run_id}
        assert {one.run_id for one in await take(others, 5)} == {theirs.run_id}


async def test_a_feed_goes_on_behind_the_last_event_id_also_at_another_api(
    start_api: StartApi, settings_with: Callable[..., Any]
) -> None:
    api = await start_api()
    person = await api.person()
    worker = await a_worker(api, person)
    async with feed(person) as stream:
        seen = await take(stream, 2)
    await worker.say("while nobody looked")
    other_api = await start_api()
    elsewhere = Person(other_api.client({"Authorization": f"Bearer {person.token}"}), person.token, person.token_id)
    async with feed(elsewhere, after="now", last_event_id=seen[-1].cursor) as stream:
        await worker.end()
        seen += await take(stream, 3)
    assert numbers(seen, worker.run_id) == [1, 2, 3, 4, 5]


async def test_now_is_where_a_feed_begins_and_where_a_client_goes_on_that_saw_nothing(api: Api, person: Person) -> None:
    worker = await a_worker(api, person)
    async with feed(person, after="now") as stream:
        [begin] = await take(stream, 1)
        assert (begin.type, begin.data) == ("", None)
    await worker.say("while nobody looked")
    async with feed(person, after="now", last_event_id=begin.cursor) as stream:
        assert numbers(await take(stream, 1), worker.run_id) == [3]


async def test_what_is_published_before_it_is_stored_comes_when_it_is_stored(api: Api, person: Person) -> None:
    worker = await a_worker(api, person)
    async with feed(person) as stream:
        await take(stream, 2)
        lines = worker.lines("one", "two")
        await worker.publish(lines)
        read = api.app.state.context.hub._feeds
        # It has been looked for in vain at least once.
        await wait_until(lambda: any(one.due_at is not None for one in read.values()))
        await worker.store(lines)
        assert numbers(await take(stream, 2), worker.run_id) == [3, 4]


async def test_events_of_a_commit_that_nobody_announced_reach_the_feed(start_api: StartApi) -> None:
    api = await start_api(stream_heartbeat_seconds=0.1)
    person = await api.person()
    worker = await a_worker(api, person)
    async with feed(person) as stream:
        await take(stream, 2)
        await worker.end(published=False)
        assert [one.type for one in await take(stream, 2)] == ["status", "end"]


async def test_a_feed_outlives_a_redis_that_comes_back_empty(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url, stream_heartbeat_seconds=0.2)
    person = await api.person()
    worker = await a_worker(api, person)
    async with feed(person) as stream:
        seen = await take(stream, 2)
        server.kill()
        await worker.store(worker.lines("only in the database"))
        seen += await take(stream, 1)
        server.start()
        await worker.end(published=False)
        seen += await take(stream, 2)
    assert numbers(seen, worker.run_id) == [1, 2, 3, 4, 5]


@pytest.mark.slow
async def test_nothing_is_missed_or_repeated_by_watchers_that_come_and_go_under_many_writers(
    start_api: StartApi, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "STREAM_RING_EVENTS", 16)
    api = await start_api(database_url=postgres_database)
    person = await api.person()
    workers = [await a_worker(api, person) for _ in range(5)]
    draw = random.Random(7)

    async def work(worker: WorkerByHand) -> None:
        for _ in range(20):
            await worker.say(*("line" for _ in range(draw.randint(1, 4))))
        await worker.end()

    async def watch(leaves: bool) -> list[FeedEvent]:
        seen: list[FeedEvent] = []
        while sum(one.type == "end" for one in seen) < len(workers):
            async with feed(person, last_event_id=seen[-1].cursor if seen else None) as stream:
                stay = draw.randint(1, 60) if leaves else 10**6
                async for published in stream:
                    if published.cursor:
                        seen.append(published)
                        if published.type == "end" or len(seen) % stay == 0:
                            break
        return seen

    watching = [asyncio.create_task(watch(leaves)) for leaves in (False, True, True)]
    await asyncio.gather(*map(work, workers))
    for seen in await asyncio.gather(*watching):
        for worker in workers:
            assert numbers(seen, worker.run_id) == list(range(1, worker.last_id + 1))


async def test_a_feed_sends_the_positions_of_queued_runs_and_moves_no_cursor_by_them(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.streams.hub.POSITION_SECONDS", 0.05)
    monkeypatch.setattr(fixed, "FEED_POSITIONS_MAX", 1)
    api = await start_api()
    person = await api.person()
    runs = [await person.make() for _ in range(2)]
    async with feed(person) as stream:
        published = [one async for one in until_position(stream)]
        assert (published[-1].cursor, published[-1].run_id, published[-1].data["position"]) == ("", runs[1], 2)
        await api.worker()
        assert [one async for one in until_position(stream)][-1].data["position"] == 1


async def until_position(stream: AsyncIterator[FeedEvent]) -> AsyncIterator[FeedEvent]:
    async for published in stream:
        yield published
        if published.type == "position":
            return


async def test_a_cursor_from_the_future_is_reported_and_the_feed_goes_on(api: Api, person: Person) -> None:
    async with feed(person, last_event_id="0-999999") as stream:
        [published] = await take(stream, 1)
        assert published.type == EventType.GAP
        worker = await a_worker(api, person)
        await worker.end()
        assert numbers(await take(stream, 4), worker.run_id) == [1, 2, 3, 4]


@pytest.mark.parametrize("cursor", ["7", "-", "1-", "a-b", "1-2-3", "-1-2", "1- 2", f"0-{2**63}", "٣-٤"])
async def test_what_is_no_cursor_is_refused(api: Api, person: Person, cursor: str) -> None:
    answer = await person.http.get("/agent/events", params={"after": cursor})
    assert (answer.status_code, answer.json()["field"]) == (422, "after")
    header = await person.http.get("/agent/events", headers=[(b"Last-Event-ID", cursor.encode())])
    assert (header.status_code, header.json()["field"]) == (422, "Last-Event-ID")


async def test_a_feed_counts_among_the_streams_of_the_process(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_max=1, stream_heartbeat_seconds=0.1)
    person = await api.person()
    async with asyncio.timeout(LONGEST_WAIT_SECONDS), person.http.stream("GET", "/agent/events") as response:
        # Silent, but for the comments that keep it open.
        chunks = response.aiter_raw()
        assert (await anext(chunks)).startswith(b":")
        answer = await person.http.get("/agent/events")
        assert answer.status_code == 503


async def test_a_user_whom_nobody_watches_any_more_is_no_longer_listened_to(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.streams.hub.LINGER_SECONDS", 0.05)
    api = await start_api()
    person = await api.person()
    worker = await a_worker(api, person)

    # On a slow machine a feed that lingers so briefly may be swept before its stream begins. Such a stream is empty,
    # and its client connects again.
    async def watched() -> list[FeedEvent]:
        async with feed(person) as stream:
            first = await anext(stream, None)
            return [first, *await take(stream, 1)] if first else []

    async def watched_to_the_end() -> list[FeedEvent]:
        async with feed(person) as stream:
            first = await anext(stream, None)
            if not first:
                return []
            await worker.end()
            return [first, *await take(stream, 3)]

    async def no_channels() -> bool:
        return await api.resources.redis.commands.pubsub_channels() == []

    assert await wait_until(watched)
    await wait_until(lambda: not api.app.state.context.hub._feeds)
    await wait_until(no_channels)  # the unsubscribe has a connection of its own
    assert numbers(await wait_until(watched_to_the_end), worker.run_id) == [1, 2, 3, 4]
