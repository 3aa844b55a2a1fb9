"""The scripts and commands stay within Redis 6.2, whatever server the other tests found: fakeredis knows no newer ones.

What blocks or races is tested on the real server; here only that every step of a job's life is understood.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from backplane.events import EventType, encode
from backplane.logs.base import Batch
from backplane.logs.redis import RedisEventLog
from backplane.queue.base import Caps, Job, Room
from backplane.redis_client import RedisClients
from backplane.runs import Priority
from tests.queues import finish, hand_back, postpone, redis_queue

JOB = Job("run-1", "user-1", Priority.HIGH)


class ToTheFake:
    """In the place of a connection of one's own."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        return [await self._redis.execute_command(*command) for command in commands]


@pytest.fixture
async def clients(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisClients]:
    clients = RedisClients("redis://127.0.0.1:1/0")
    clients.commands = FakeAsyncRedis(server=FakeServer(version=(6, 2)), decode_responses=True)

    @asynccontextmanager
    async def own_connection() -> AsyncIterator[ToTheFake]:
        yield ToTheFake(clients.commands)

    monkeypatch.setattr(clients, "own_connection", own_connection)
    yield clients
    await clients.close()


async def test_a_jobs_life_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={Priority.HIGH: 1}), room=Room(overall=5))
    assert await queue.admit(JOB.run_id, JOB.priority)
    assert await queue.enqueue([JOB, replace(JOB, run_id="run-2")]) == [True, True]
    [standing] = await queue.standing([JOB.run_id])
    assert standing is not None
    [claim] = await queue.claim("worker", 5)
    assert not (await queue.renew("worker", 5, [claim])).lost
    await hand_back(queue, claim)
    [again] = await queue.claim("worker", 5)
    assert again.generation == claim.generation + 1
    await postpone(queue, again, 60)
    assert (await queue.statistics()).scheduled == 1
    assert (await queue.reap(10)).due == 0
    await queue.forget(JOB.run_id)
    assert await queue.known([JOB.run_id]) == [False]
    [last] = await queue.claim("worker", 5)
    await finish(queue, last, 1.5)
    assert [job.run_id for job in await queue.finished()] == [last.run_id, JOB.run_id]
    await queue.mirror_dead({"run-1": 1.0})
    await queue.end_wait("worker")
    await queue.leave("worker")
    assert (await queue.statistics()).workers == 0


async def test_an_event_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    event_log = RedisEventLog(clients, keep_events=100, keep_seconds=60, silent_seconds=60)
    event = encode("run-1", 1, EventType.LOG, {"line": "hello"})
    assert await event_log.append([Batch("run-1", 1, [event])]) == [True]
    assert await event_log.after("run-1", 0, 10) == [event]
    assert await event_log.last_id("run-1") == 1
