"""How long the queue is in each priority, and how long the run that is taken next has waited."""

from collections.abc import Mapping

import pytest

from backplane.domain.runs import Priority
from backplane.queue.base import Caps, Depth, Job, Queue, QueueDepths
from backplane.redis.client import RedisClients
from tests.queues import redis_queue


@pytest.fixture
def queue(clients: RedisClients) -> Queue:
    return redis_queue(clients)


async def enqueue(queue: Queue, *names: str, priority: Priority = Priority.NORMAL) -> None:
    assert all(await queue.enqueue([Job(name, "user-1", priority) for name in names]))


async def depths_of(queue: Queue) -> Mapping[Priority, Depth]:
    [found] = await queue.depths()
    return found.by_priority


async def test_an_empty_queue_has_no_depth_in_any_priority(queue: Queue) -> None:
    assert await queue.depths() == [QueueDepths("default", 0, 0, 0, dict.fromkeys(Priority, Depth(0, 0, 0.0)))]


async def test_the_depth_counts_what_may_be_taken_by_priority_and_not_what_is_running(queue: Queue) -> None:
    await enqueue(queue, "a", "b", "c")
    await enqueue(queue, "urgent", priority=Priority.CRITICAL)
    await queue.claim("worker-1", 2)
    depths = await depths_of(queue)
    assert {priority: depth.waiting for priority, depth in depths.items() if depth.waiting} == {Priority.NORMAL: 2}


async def test_what_a_cap_holds_back_is_counted_apart(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={Priority.NORMAL: 1}))
    await enqueue(queue, "a", "b", "c")
    depth = (await depths_of(queue))[Priority.NORMAL]
    assert (depth.waiting, depth.parked) == (1, 2)


async def test_the_oldest_is_the_one_to_be_taken_next(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "old", "young")
    await enqueue(queue, "urgent", priority=Priority.HIGH)
    keys = clients.keys
    an_hour_ago = float(await clients.commands.hget(keys.job("old"), "since") or 0) - 3_600_000
    await clients.commands.hset(keys.job("old"), "since", str(an_hour_ago))
    depths = await depths_of(queue)
    assert 3600 <= depths[Priority.NORMAL].oldest_seconds < 3660
    assert depths[Priority.HIGH].oldest_seconds < 60
    await queue.claim("worker-1", 2)
    assert (await depths_of(queue))[Priority.NORMAL].oldest_seconds < 60
