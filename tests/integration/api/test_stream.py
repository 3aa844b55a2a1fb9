"""The stream of a run: every event once, in order, for whoever watches, whenever they come."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest

from app.context import ApiContext
from app.edge.turns import AT_ONCE
from app.streams import hub
from app.streams.buffer import Watcher
from app.streams.sse import History, Position, stream
from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import RunStatus
from backplane.redis.keys import Keys
from backplane.settings import fixed
from tests.integration.api.running import Api, Frame, Person, StartApi
from tests.waiting import wait_until


def numbers(frames: list[Frame]) -> list[int | None]:
    return [frame.id for frame in frames]


async def until(stream: AsyncIterator[Frame], number: int) -> list[Frame]:
    """The numbered frames up to this one."""
    seen: list[Frame] = []
    async for frame in stream:
        if frame.id is not None:
            seen.append(frame)
        if frame.id == number:
            return seen
    raise AssertionError(f"the stream ended before event {number}: {seen}")


async def watchers_are(api: Api, count: int) -> None:
    """That the hub counts so many is nothing a user sees, but where the test may go on."""
    await wait_until(lambda: api.app.state.context.hub.watchers == count)


async def test_a_stream_opened_before_start_has_the_whole_run(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    async with person.stream(run_id) as stream:
        first = await anext(stream)
        assert (first.id, first.event, first.data["status"]) == (1, "status", "created")
        await person.act("start", run_id)
        worker = await api.worker()
        await worker.say("one", "two")
        await worker.end()
        rest = [frame async for frame in stream if frame.id]
    assert numbers(rest) == [2, 3, 4, 5, 6]
    assert [frame.event for frame in rest] == ["status", "log", "log", "status", "end"]


async def test_a_stream_opened_after_the_end_has_the_same_events_and_ends(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say("one", "two")
    await worker.end()
    first, second = await person.watch(worker.run_id), await person.watch(worker.run_id)
    assert numbers(first) == [1, 2, 3, 4, 5, 6]
    assert first == second


async def test_two_streams_of_one_person_have_the_same_events(api: Api, person: Person) -> None:
    run_id = await person.make()
    watching = [asyncio.create_task(person.watch(run_id)) for _ in range(2)]
    worker = await api.worker()
    for count in range(20):
        await worker.say(f"line {count}")
    await worker.end()
    first, second = await asyncio.gather(*watching)
    assert numbers(first) == list(range(1, 25))
    assert first == second


async def test_an_event_of_the_stream_is_the_event_of_the_json_log(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say("ünïcode \u2028 and a line\nbreak")
    await worker.end()
    log = (await person.http.get(f"/agent/logs/{worker.run_id}")).json()
    streamed = await person.watch(worker.run_id)
    assert [frame.body["data"] for frame in streamed] == [event["data"] for event in log["events"]]
    assert [(frame.id, frame.event) for frame in streamed] == [(event["id"], event["type"]) for event in log["events"]]
    assert log["ended"] is True


async def test_last_event_id_goes_on_after_the_event_that_was_received(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say(*(f"line {count}" for count in range(10)))
    async with person.stream(worker.run_id) as stream:
        seen = await until(stream, 7)
    await worker.say("while nobody looks")
    await worker.end()
    rest = await person.watch(worker.run_id, last_event_id=7)
    assert numbers(seen + rest) == list(range(1, 16))


async def test_last_event_id_goes_before_after(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.end()
    assert numbers(await person.watch(worker.run_id, after=1, last_event_id=3)) == [4]
    assert numbers(await person.watch(worker.run_id, after=1)) == [2, 3, 4]


@pytest.mark.parametrize("cursor", [4, 5, 2**31 - 1])
async def test_a_cursor_at_or_beyond_the_end_of_a_run_that_is_over_is_answered_204(
    api: Api, person: Person, cursor: int
) -> None:
    await person.make()
    worker = await api.worker()
    await worker.end()
    async with asyncio.timeout(10):
        answer = await person.http.get(f"/agent/logs/{worker.run_id}/stream", headers={"Last-Event-ID": str(cursor)})
    assert (answer.status_code, answer.content) == (204, b"")


async def test_a_cursor_in_the_future_of_a_live_run_is_reported_and_the_stream_goes_on(
    api: Api, person: Person
) -> None:
    run_id = await person.make()
    async with person.stream(run_id, last_event_id=9999) as stream:
        published = await anext(stream)
        assert (published.id, published.event) == (2, "gap")
        worker = await api.worker()
        await worker.say("after all")
        await worker.end()
        rest = [frame async for frame in stream if frame.id]
    assert numbers(rest) == [3, 4, 5]


async def test_streams_that_look_for_an_event_of_the_future_hold_up_no_other_call_of_their_user(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, looks, go = await person.make("create"), list[int](), asyncio.Event()

    async def look(_: History, __: str, cursor: int) -> int:
        looks.append(cursor)
        await go.wait()
        return 0

    monkeypatch.setattr(History, "caught_up", look)
    path, headers = f"/agent/logs/{run_id}/stream", {"Last-Event-ID": "9999"}
    looking = [asyncio.create_task(person.http.get(path, headers=headers)) for _ in range(2 * AT_ONCE)]
    try:
        await wait_until(lambda: len(looks) == 2 * AT_ONCE)
    finally:
        go.set()
    for task in looking:
        task.cancel()
    await asyncio.wait(looking)


async def test_a_silent_stream_gets_a_comment_that_clients_pass_over(start_api: StartApi) -> None:
    api = await start_api(stream_heartbeat_seconds=0.1)
    person = await api.person()
    run_id = await person.make("create")
    async with person.stream(run_id) as stream:
        assert (await anext(stream)).id == 1
        beat = await anext(stream)
    assert beat.comment
    assert (beat.id, beat.event, beat.text) == (None, "", "")


async def test_a_queued_run_sends_its_position_as_it_changes(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.streams.hub.POSITION_SECONDS", 0.05)
    api = await start_api()
    person = await api.person()
    first, second = await person.make(), await person.make()
    await api.resources.queue.renew("worker", 1, [])
    async with person.stream(second) as stream:
        assert [(await anext(stream)).event for _ in range(2)] == ["status", "status"]
        waiting = await anext(stream)
        assert waiting.event == "position"
        assert waiting.data["position"] == 2
        assert waiting.data["estimated_wait_seconds"] > 0
        assert (await api.worker()).run_id == first
        assert (await anext(stream)).data["position"] == 1


async def test_a_position_moves_no_cursor(api: Api, person: Person) -> None:
    run_id = await person.make()
    async with person.stream(run_id) as stream:
        positions = [frame async for frame in stream_until_position(stream)]
    assert positions[-1].id is None
    assert [event["type"] for event in (await person.http.get(f"/agent/logs/{run_id}")).json()["events"]] == [
        "status",
        "status",
    ]


def progress(run_id: str, tokens: int) -> Event:
    about = {"step": "s", "purpose": "turn", "number": 1, "model": "one/m", "output_tokens": tokens, "seconds": 1.0}
    return encode(run_id, 0, EventType.PROGRESS, about)


async def test_what_a_model_has_so_far_is_streamed_and_moves_no_cursor(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    async with person.stream(worker.run_id) as stream:
        assert numbers(await until(stream, 2)) == [1, 2]
        for tokens in (5, 9):
            await api.resources.event_log.show([progress(worker.run_id, tokens)])
            published = await anext(stream)
            assert (published.id, published.event, published.data["output_tokens"]) == (None, "progress", tokens)
        await worker.say("a line")
        assert (await anext(stream)).id == 3
    await api.resources.event_log.show([progress(worker.run_id, 12)])
    await worker.end()
    again = await person.watch(worker.run_id, last_event_id=2)
    assert [frame.event for frame in again if frame.event != "progress"] == ["log", "status", "end"]
    log = (await person.http.get(f"/agent/logs/{worker.run_id}")).json()["events"]
    assert [event["id"] for event in log] == list(range(1, 6))


async def test_who_comes_later_sees_what_a_model_has_so_far_until_its_call_is_over(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    async with person.stream(worker.run_id) as first:
        await until(first, 2)
        await api.resources.event_log.show([progress(worker.run_id, 5)])
        assert (await anext(first)).event == "progress"
        async with person.stream(worker.run_id, last_event_id=2) as second:
            assert (await anext(second)).event == "progress"
        await worker.publish([worker.number(EventType.MODEL, {"step": "s", "purpose": "turn", "status": "completed"})])
        assert (await anext(first)).event == "model"
        async with person.stream(worker.run_id, last_event_id=3) as third:
            await worker.say("a line")
            assert (await anext(third)).event == "log"


async def stream_until_position(stream: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
    async for frame in stream:
        yield frame
        if frame.event == "position":
            return


@pytest.mark.slow
async def test_fifty_watchers_of_a_burst_have_every_event_once_and_in_order(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "STREAM_RING_EVENTS", 256)
    api = await start_api()
    person = await api.person()
    run_id = await person.make()

    async def watch() -> list[int]:
        answer = await person.http.get(f"/agent/logs/{run_id}/stream")
        return [int(number) for number in re.findall(rb"^id: (\d+)$", answer.content, re.MULTILINE)]

    watching = [asyncio.create_task(watch()) for _ in range(50)]
    await watchers_are(api, 50)
    worker = await api.worker()
    for _ in range(10):
        await worker.say(*("burst" for _ in range(500)))
    await worker.end()
    every = list(range(1, 5005))
    assert all(watched == every for watched in await asyncio.gather(*watching))


async def test_a_reader_that_is_far_too_slow_still_has_everything(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "STREAM_RING_EVENTS", 16)
    api = await start_api(send_buffer=16_384)
    person = await api.person()
    run_id = await person.make()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", int(api.url.rpartition(":")[2])))
        reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
        request = f"GET /agent/logs/{run_id}/stream HTTP/1.0\r\nAuthorization: Bearer {person.token}\r\n\r\n"
        writer.write(request.encode())
        await reader.readuntil(b"\r\n\r\n")
        # 8 MB in rings of 64 to 128 KB: by the end, what the reader waits for is long gone from memory.
        worker = await api.worker()
        for _ in range(20):
            await worker.say(*("x" * 4000 for _ in range(100)))
        await worker.end()
        async with asyncio.timeout(20):
            received = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
    assert [int(number) for number in re.findall(rb"^id: (\d+)$", received, re.MULTILINE)] == list(range(1, 2005))


async def test_a_reader_that_takes_nothing_is_cut_off(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "STREAM_SEND_TIMEOUT_SECONDS", 0.5)
    api = await start_api(send_buffer=16_384)
    person = await api.person()
    await person.make()
    worker = await api.worker()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", int(api.url.rpartition(":")[2])))
        request = f"GET /agent/logs/{worker.run_id}/stream HTTP/1.0\r\nAuthorization: Bearer {person.token}\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        await watchers_are(api, 1)
        for _ in range(10):
            await worker.say(*("x" * 4000 for _ in range(100)))
        await watchers_are(api, 0)
    # Who takes what there is, be it little, is not.
    async with person.stream(worker.run_id) as stream:
        await until(stream, 1002)
        await worker.end()
        assert [frame.event async for frame in stream if frame.id] == ["status", "end"]


async def test_watchers_share_one_connection_to_redis(api: Api, person: Person) -> None:
    runs = [await person.make("create") for _ in range(5)]
    redis = api.resources.redis.commands
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(person.watch(run_id)) for run_id in runs for _ in range(4)]
        await watchers_are(api, 20)

        async def one_connection() -> bool:
            return len(await redis.client_list(_type="pubsub")) == 1

        # The API of the test before may hang up a moment late; further connections of this one would stay.
        await wait_until(one_connection)
        for run_id in runs:
            await person.act("cancel", run_id)
    assert all(watched.result()[-1].event == "end" for watched in watching)


async def test_a_run_that_nobody_watches_any_more_is_no_longer_listened_to(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.streams.hub.LINGER_SECONDS", 0.05)
    api = await start_api()
    person = await api.person()
    run_id = await person.make("create")
    redis = api.resources.redis.commands

    async def listeners() -> int:
        [(_, count)] = await redis.pubsub_numsub(Keys().channel(run_id))
        return int(count)

    async def was_watched() -> bool:
        """Not when it was swept before its stream began, as on a slow machine: the client connects again."""
        async with person.stream(run_id) as stream:
            if await anext(stream, None) is None:
                return False
            assert await listeners() == 1
            return True

    async def nobody() -> bool:
        return await listeners() == 0

    await wait_until(was_watched)
    await wait_until(nobody)


async def test_more_watchers_than_the_process_serves_are_asked_to_come_again(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_max=2)
    person, other = await api.person(), await api.person()
    run_id, others = await person.make("create"), await other.make("create")
    async with person.stream(run_id) as one, other.stream(others) as two:
        await asyncio.gather(anext(one), anext(two))
        answer = await person.http.get(f"/agent/logs/{run_id}/stream")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
    await watchers_are(api, 0)
    async with person.stream(run_id) as stream:
        assert (await anext(stream)).id == 1


async def test_a_failed_run_that_is_tried_again_streams_past_its_first_end(api: Api, person: Person) -> None:
    run_id = await person.make()
    worker = await api.worker()
    await worker.end(RunStatus.FAILED)
    await person.act("retry", run_id)
    worker = await api.worker()
    await worker.end()
    events = [frame.event for frame in await person.watch(run_id)]
    assert events == ["status", "status", "status", "end", "status", "status", "end"]


async def test_a_first_end_at_the_end_of_a_page_does_not_end_the_stream_of_a_later_attempt(
    api: Api, person: Person
) -> None:
    run_id = await person.make()
    worker = await api.worker()
    await worker.say(*("line" for _ in range(496)))
    await worker.end(RunStatus.FAILED)
    assert worker.last_id == 500
    await person.act("retry", run_id)
    worker = await api.worker()
    await worker.end()
    assert numbers(await person.watch(run_id)) == list(range(1, 504))


async def test_a_run_that_nobody_watches_any_more_is_listened_to_anew_by_the_next(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LINGER_SECONDS", 0.05)
    api = await start_api()
    person = await api.person()
    run_id = await person.make()
    context: ApiContext = api.app.state.context
    access = await person.access(api)
    old = await context.hub.open(access.user, run_id, is_queued=True)
    await wait_until(lambda: old.swept)
    history = partial(context.history.span, run_id)
    assert [chunk async for chunk in stream(old, history, Position(0), Watcher(access))] == []
    new = await context.hub.open(access.user, run_id, is_queued=True)
    assert new is not old
    worker = await api.worker()
    await worker.end()
    # Empty when it was swept again before its stream began, as on a slow machine: the client connects again.
    assert numbers(await wait_until(lambda: person.watch(run_id))) == [1, 2, 3, 4]
