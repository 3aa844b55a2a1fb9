"""The scripts and commands stay within Redis 6.2, whatever server the other tests found: fakeredis knows no newer ones.

What blocks or races is tested on the real server; here only that every step of a job's life is understood.
"""

from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from backplane.events import EventType, encode
from backplane.logs.base import Batch
from backplane.logs.redis import RedisEventLog
from backplane.queue.base import Job
from backplane.queue.redis import RedisQueue
from backplane.redis_client import RedisClients
from backplane.runs import Priority

JOB = Job("run-1", "user-1", Priority.HIGH)


@pytest.fixture
async def clients() -> AsyncIterator[RedisClients]:
    clients = RedisClients("redis://127.0.0.1:1/0")
    clients.commands = FakeAsyncRedis(server=FakeServer(version=(6, 2)), decode_responses=True)
    yield clients
    await clients.close()


async def test_a_jobs_life_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    queue = RedisQueue(clients, lease_seconds=60, initial_run_seconds=120)
    assert await queue.enqueue(JOB)
    [standing] = await queue.standing([JOB.run_id])
    assert standing is not None
    [claim] = await queue.claim("worker", 5)
    assert await queue.renew("worker", 5, [claim]) == frozenset()
    await queue.release(claim)
    [again] = await queue.claim("worker", 5)
    assert again.generation == claim.generation + 1
    await queue.release(again, delay_seconds=60)
    assert (await queue.statistics()).scheduled == 1
    assert (await queue.reap(10)).due == 0
    await queue.forget(JOB.run_id)
    assert await queue.known([JOB.run_id]) == [False]
    await queue.enqueue(JOB)
    [last] = await queue.claim("worker", 5)
    await queue.finish(last, 1.5)
    await queue.leave("worker")
    assert (await queue.statistics()).workers == 0


async def test_an_event_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    event_log = RedisEventLog(clients, keep_events=100, keep_seconds=60, silent_seconds=60)
    event = encode("run-1", 1, EventType.LOG, {"line": "hello"})
    assert await event_log.append([Batch("run-1", 1, [event])]) == [True]
    assert await event_log.after("run-1", 0, 10) == [event]
    assert await event_log.last_id("run-1") == 1
