"""The scripts and commands stay within Redis 6.2, whatever server the other tests found: fakeredis knows no newer ones.

What blocks or races is tested on the real server; here only that every step of a job's life is understood.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from backplane.domain.events import EventType, encode
from backplane.domain.runs import Priority
from backplane.limits.buckets.base import Bucket
from backplane.limits.buckets.redis import RedisTokenBuckets
from backplane.limits.slots.base import SlotRequest
from backplane.limits.slots.redis import RedisSlots
from backplane.logs.base import Appended, Batch
from backplane.queue.base import Caps, Job, QueueRoom
from backplane.redis.client import RedisClients
from tests.event_logs import make_known, redis_event_log
from tests.queues import finish, hand_back, known, postpone, redis_queue
from tests.waiting import wait_until

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
    queue = redis_queue(clients, caps=Caps(user={Priority.HIGH: 1}), room=QueueRoom(user=5, overall=10))
    assert await queue.admit(JOB.run_id, JOB.user_id, JOB.priority) is None
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
    assert await known(queue, [JOB.run_id]) == [False]
    [last] = await queue.claim("worker", 5)
    await finish(queue, last, 1.5)
    assert [job.run_id for job in await queue.finished()] == [last.run_id, JOB.run_id]
    await queue.mirror_dead({"run-1": 1.0})
    await queue.end_wait("worker")
    await queue.deregister("worker")
    assert (await queue.statistics()).workers == 0


async def test_an_event_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    event_log = redis_event_log(clients)
    await make_known(clients, "run-1")
    first, second = (encode("run-1", number, EventType.LOG, {"line": "hello"}) for number in (1, 2))
    assert await event_log.append([Batch("run-1", 1, [first, second])]) == [Appended.TAKEN]
    assert await event_log.after("run-1", 0, 10) == [first, second]
    assert await event_log.last_id("run-1") == 2
    for stored_id in (1, 2):
        assert await event_log.append([Batch("run-1", 1, [], stored_id=stored_id)]) == [Appended.TAKEN]
    assert await event_log.last_id("run-1") is None


async def test_a_model_slot_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    slots = RedisSlots(clients, lease_seconds=15, turn_seconds=10)
    places: list[int] = []

    async def call(name: str) -> None:
        request = SlotRequest("server", "model", "user-1", f"run-{name}", name)
        async with slots.hold(request, parallel=1, models=1, on_wait=places.append):
            pass

    request = SlotRequest("server", "model", "user-1", "run-a", "a")
    async with slots.hold(request, parallel=1, models=1, on_wait=places.append):
        waiting = asyncio.create_task(call("b"))
        await wait_until(lambda: places)
        assert await slots.waiting("run-b")
        await slots._renew_at("server")
    await slots._renew_at("server")
    await waiting
    assert places == [1]


async def test_a_token_bucket_needs_no_command_that_redis_6_2_lacks(clients: RedisClients) -> None:
    buckets, bucket = RedisTokenBuckets(clients), Bucket("user-1/agent", 1, 100)
    assert await buckets.ask("one", 0, [bucket], 150, "run-1") == 0
    assert await buckets.ask("other", 0, [bucket], 150, "run-1") > 0
    await buckets.settle([bucket], 150, 50)
    assert 50 <= await buckets.level(bucket) < 60
