"""The stream when parts fail: events that were missed are read again, events that are nowhere are sent as a gap, and
`end` comes."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.streams.sse import History
from backplane.domain.events import EventType
from tests.integration.api.running import Api, Frame, Person, StartApi, WorkerByHand, frames
from tests.queues import hand_back
from tests.servers import RedisServer
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def numbers(watched: list[Frame]) -> list[int | None]:
    return [frame.id for frame in watched if frame.id is not None]


async def test_nothing_is_missed_when_redis_cuts_the_wire(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    redis = api.resources.redis.commands

    async def cut_off() -> bool:
        return bool(await redis.client_kill_filter(_type="pubsub"))

    async with person.stream(worker.run_id) as stream:
        for number in range(1, 3):
            assert (await anext(stream)).id == number
        for count in range(3):
            await wait_until(cut_off)
            await worker.say(f"line {count}")
            frame = await anext(stream)
            assert (frame.event, frame.data["line"]) == ("log", f"line {count}")
        await worker.end()
        assert numbers([frame async for frame in stream]) == [6, 7]


async def test_nothing_is_missed_when_redis_loses_the_stream_of_a_run(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say("one", "two")
    watching = asyncio.create_task(person.watch(worker.run_id))
    await api.resources.redis.commands.delete(api.resources.redis.keys.stream(worker.run_id))
    await worker.say("three", "four")
    late = asyncio.create_task(person.watch(worker.run_id))
    await api.resources.redis.commands.delete(api.resources.redis.keys.stream(worker.run_id))
    await worker.end()
    assert numbers(await watching) == numbers(await late) == list(range(1, 9))


async def test_nothing_is_missed_when_redis_is_emptied_in_mid_run(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say("one", "two")
    async with person.stream(worker.run_id) as stream:
        assert [(await anext(stream)).id for _ in range(4)] == [1, 2, 3, 4]
        await api.resources.redis.commands.flushall()
        await worker.say("three")
        assert (await anext(stream)).id == 5
        await worker.end()
        assert numbers([frame async for frame in stream]) == [6, 7]


async def test_nothing_is_missed_when_redis_is_stopped_and_comes_back_empty(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url)
    person = await api.person()
    await person.make()
    worker = await api.worker()
    async with person.stream(worker.run_id) as stream:
        assert [(await anext(stream)).id for _ in range(2)] == [1, 2]
        server.kill()
        await worker.store(worker.lines("only in the database"))
        server.start()
        await wait_until(lambda: _publishes(worker, "published again"))
        seen = [(await anext(stream)).id for _ in range(worker.last_id - 2)]
        assert seen == list(range(3, worker.last_id + 1))
        await worker.end()
        assert numbers([frame async for frame in stream]) == [worker.last_id - 1, worker.last_id]


async def _publishes(worker: WorkerByHand, line: str) -> bool:
    await worker.say(line)
    return True


async def test_the_wire_carries_on_while_the_database_lags_behind(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    unstored = worker.lines("one", "two")
    await worker.publish(unstored)
    async with person.stream(worker.run_id) as stream:
        assert [(await anext(stream)).id for _ in range(4)] == [1, 2, 3, 4]
        await worker.store(unstored)
        await worker.end()
        assert numbers([frame async for frame in stream]) == [5, 6]


async def test_numbers_that_are_nowhere_are_sent_as_a_gap(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    async with person.stream(worker.run_id) as stream:
        await worker.say("three")
        assert [(await anext(stream)).id for _ in range(3)] == [1, 2, 3]
        worker.lines("lost", "lost", "lost")
        await worker.say("seven")
        published, seven = await anext(stream), await anext(stream)
        assert (published.id, published.event) == (6, "gap")
        assert (published.data["after"], published.data["before"]) == (3, 7)
        assert seven.id == 7
        await worker.end()
        live = [published, seven, *[frame async for frame in stream if frame.id]]
    assert numbers(await person.watch(worker.run_id)) == [1, 2, 3, *numbers(live)]


async def test_a_gap_that_the_worker_published_is_not_sent_twice(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    worker.lines(*("lost" for _ in range(1000)))
    published = [worker.number(EventType.GAP, {"after": 2, "before": worker.last_id + 1, "reason": "lost"})]
    await worker.publish(published)
    await worker.store(published)
    await worker.end()
    watched = await person.watch(worker.run_id)
    assert [(frame.id, frame.event) for frame in watched[2:]] == [(1003, "gap"), (1004, "status"), (1005, "end")]


async def test_the_end_comes_also_when_the_worker_died_before_it_could_publish_it(start_api: StartApi) -> None:
    api = await start_api(stream_heartbeat_seconds=0.1)
    person = await api.person()
    await person.make()
    worker = await api.worker()
    async with person.stream(worker.run_id) as stream:
        assert [(await anext(stream)).id for _ in range(2)] == [1, 2]
        await worker.end(published=False)
        assert [frame.event async for frame in stream if frame.id] == ["status", "end"]


async def test_the_end_comes_when_a_run_is_cancelled_while_redis_is_down(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url, stream_heartbeat_seconds=0.1)
    person = await api.person()
    run_id = await person.make()
    async with person.stream(run_id) as stream:
        assert [(await anext(stream)).id for _ in range(2)] == [1, 2]
        server.kill()
        assert (await person.act("cancel", run_id)).json()["status"] == "cancelled"
        assert [frame.event async for frame in stream if frame.id] == ["status", "end"]


async def test_a_watcher_that_is_ahead_of_the_store_when_redis_is_emptied_receives_nothing_twice(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    await person.make()
    worker = await api.worker()
    ahead = worker.lines("told, and not stored yet")
    await worker.publish(ahead)
    async with person.stream(worker.run_id) as stream:
        while (await anext(stream)).id != ahead[-1].id:
            pass
    await api.resources.redis.commands.flushall()
    last_id, asked = History.last_id, asyncio.Event()

    async def noted(self: History, run_id: str) -> int:
        asked.set()
        return await last_id(self, run_id)

    monkeypatch.setattr(History, "last_id", noted)
    watching = asyncio.create_task(person.watch(worker.run_id, last_event_id=ahead[-1].id))
    await asked.wait()
    await worker.store(ahead)
    await worker.end()
    assert numbers(await watching) == [ahead[-1].id + 1, ahead[-1].id + 2]


async def test_what_is_no_event_on_the_wire_harms_no_stream(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    async with person.stream(worker.run_id) as stream:
        assert [(await anext(stream)).id for _ in range(2)] == [1, 2]
        for noise in ("", "noise", "[]", "{}", '{"id": "x", "run_id": 1, "type": "log"}', "null"):
            await api.resources.redis.commands.publish(api.resources.redis.keys.channel(worker.run_id), noise)
        await worker.say("three")
        assert (await anext(stream)).id == 3


async def test_a_generation_that_was_replaced_reaches_no_stream(api: Api, person: Person) -> None:
    await person.make()
    old = await api.worker()
    queue = api.resources.queue
    await hand_back(queue, old.claim)
    [claim] = await queue.claim("newer", 1)
    newer = await WorkerByHand.take(api.resources, claim)
    with pytest.raises(AssertionError):
        await old.publish(old.lines("from the grave"))
    await newer.say("alive")
    await newer.end()
    assert [frame.data.get("line") for frame in await person.watch(newer.run_id) if frame.event == "log"] == ["alive"]


async def test_streams_that_are_opened_while_redis_comes_and_goes_work_once_it_is_back(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url)
    person = await api.person()
    runs = [await person.make("create") for _ in range(20)]
    async with person.stream(runs[0]) as stream:
        await anext(stream)
        for _ in range(2):
            server.kill()
            down = await asyncio.gather(*(person.http.get(f"/agent/logs/{run_id}/stream") for run_id in runs[1:]))
            assert {answer.status_code for answer in down} == {503}
            assert all("retry-after" in answer.headers for answer in down)
            server.start()
        watching = [asyncio.create_task(_until_it_works(person, run_id)) for run_id in runs[1:]]
        for run_id in runs:
            await person.act("cancel", run_id)
        assert {frame.event async for frame in stream if frame.id} == {"status", "end"}
    assert {watched[-1].event for watched in await asyncio.gather(*watching)} == {"end"}


async def _until_it_works(person: Person, run_id: str) -> list[Frame]:
    while True:
        async with person.http.stream("GET", f"/agent/logs/{run_id}/stream") as answer:
            if answer.status_code == 200:
                return [frame async for frame in frames(answer) if frame.id]
            assert answer.status_code == 503


@pytest.mark.slow
async def test_the_api_stops_within_seconds_although_streams_are_open(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    program = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--timeout-graceful-shutdown", "5"]
    environment = {
        **os.environ,
        "REDIS_URL": api.settings.redis_url.get_secret_value(),
        "DATABASE_URL": api.settings.database_url.get_secret_value(),
        "WORKSPACE_DIR": str(api.settings.workspace_dir),
    }
    process = await asyncio.create_subprocess_exec(
        *program, "--port", "0", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async for line in process.stderr:
        if b"running on" in line:
            break
    url = line.split(b"http://")[1].split()[0].decode()
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {person.token}"}) as http,
        http.stream("GET", f"http://{url}/agent/logs/{run_id}/stream", timeout=20) as response,
    ):
        assert (await anext(stream := frames(response))).id == 1
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            with suppress(httpx.RemoteProtocolError):  # cut off in the middle, which clients answer by coming again
                assert [frame async for frame in stream] == []
            said = (await process.communicate())[1]
    assert process.returncode in (0, -signal.SIGTERM)
    assert b"Traceback" not in said, said.decode()
