"""Queues of agents: there are as many as agents, and a process looks at those of its own alone."""

import asyncio
from collections.abc import Sequence

import pytest

from backplane.domain.runs import AGENT_QUEUES, ALL_AGENT_QUEUES, DEFAULT_QUEUE, Priority
from backplane.queue.base import Depth, Job, Queue
from backplane.redis.client import RedisClients
from tests.queues import finish, redis_queue

OWN = [f"{AGENT_QUEUES}own-{number}" for number in range(10)]


@pytest.fixture
def queue(clients: RedisClients) -> Queue:
    return redis_queue(clients)


def others(count: int) -> list[str]:
    return [f"{AGENT_QUEUES}other-{number}" for number in range(count)]


async def message(queue: Queue, *agents: str, priority: Priority = Priority.NORMAL) -> None:
    """One waiting run in the queue of each of these agents."""
    jobs = [Job(f"run of {agent}", "user-1", priority, queue=agent) for agent in agents]
    assert all(await queue.enqueue(jobs))


async def taken(queue: Queue, queues: Sequence[str], limit: int = 10) -> list[str]:
    return [claim.job.queue for claim in await queue.claim("process-1", limit, queues=queues)]


async def calls_of_a_claim(clients: RedisClients, queue: Queue, queues: Sequence[str]) -> int:
    """How often a claim that finds nothing reads a sorted set."""
    await clients.commands.config_resetstat()
    assert await taken(queue, queues) == []
    statistics = await clients.commands.info("commandstats")
    return int(statistics.get("cmdstat_zrange", {}).get("calls", 0))


async def test_a_claim_of_ten_agents_looks_at_no_more_when_thousands_of_others_have_messages(
    queue: Queue, clients: RedisClients
) -> None:
    await message(queue, *others(3000), priority=Priority.CRITICAL)
    assert await calls_of_a_claim(clients, queue, OWN) < 30
    await message(queue, *OWN, priority=Priority.LOW)
    assert sorted(await taken(queue, OWN)) == OWN


async def test_the_order_holds_where_the_own_queues_are_looked_at_one_by_one(queue: Queue) -> None:
    await message(queue, *others(50), priority=Priority.CRITICAL)
    await message(queue, OWN[0], priority=Priority.LOW)
    await message(queue, OWN[1])
    await message(queue, OWN[2])
    await message(queue, OWN[3], priority=Priority.CRITICAL)
    assert await taken(queue, OWN, limit=3) == [OWN[3], OWN[1], OWN[2]]
    assert await taken(queue, OWN) == [OWN[0]]


@pytest.mark.connection
async def test_a_worker_without_queues_takes_nothing_and_is_woken(queue: Queue) -> None:
    await message(queue, *OWN)
    assert await queue.claim("process-1", 1, queues=()) == []
    waiting = asyncio.create_task(queue.claim("process-1", 1, 30.0, queues=()))
    await asyncio.sleep(0)
    await queue.end_wait("process-1")
    async with asyncio.timeout(10):
        assert await waiting == []


@pytest.mark.parametrize("served", [OWN[:1], OWN[:2]])
async def test_nothing_is_kept_of_an_agents_queue_when_its_message_is_taken(
    queue: Queue, clients: RedisClients, served: list[str]
) -> None:
    await message(queue, OWN[0])
    [claim] = await queue.claim("process-1", 2, queues=served)
    await finish(queue, claim, 2.0)
    left = [
        key async for key in clients.commands.scan_iter(f"{clients.keys.jobs}*") if "queue" in key or "heads" in key
    ]
    assert left == [f"{clients.keys.jobs}queue:{ALL_AGENT_QUEUES}:durations"]
    assert (await queue.statistics(OWN[5])).durations == (2.0,)


async def test_the_queues_of_agents_are_listed_as_one(queue: Queue) -> None:
    await message(queue, *OWN[:3])
    await message(queue, *others(2), priority=Priority.HIGH)
    assert await taken(queue, OWN, limit=1) == [OWN[0]]
    await queue.renew("process-1", 10, [], queues=OWN)
    await queue.renew("process-2", 5, [], queues=())
    await queue.renew("worker-1", 4, [])
    found = {of.queue: of for of in await queue.depths()}
    assert set(found) == {DEFAULT_QUEUE, ALL_AGENT_QUEUES}
    agents, default = found[ALL_AGENT_QUEUES], found[DEFAULT_QUEUE]
    assert (agents.workers, agents.slots, agents.running) == (2, 15, 1)
    assert {priority: of.waiting for priority, of in agents.by_priority.items() if of.waiting} == {
        Priority.NORMAL: 2,
        Priority.HIGH: 2,
    }
    assert (default.workers, default.slots, default.running) == (1, 4, 0)


async def test_the_depth_of_very_many_agents_is_estimated_from_some(queue: Queue) -> None:
    await message(queue, *others(600))
    [agents] = [of for of in await queue.depths() if of.queue == ALL_AGENT_QUEUES]
    assert agents.by_priority[Priority.NORMAL].waiting == 600
    assert agents.by_priority[Priority.LOW] == Depth(0, 0, 0.0)


async def test_the_served_queues_name_no_agents(queue: Queue) -> None:
    await queue.renew("process-1", 10, [], queues=OWN)
    await queue.renew("process-2", 10, [], queues=())
    await queue.renew("worker-1", 4, [], queues=["gpu"])
    assert await queue.served() == {"gpu"}
    assert (await queue.statistics()).served == {"gpu"}


async def test_a_message_knows_the_process_that_serves_its_agent(queue: Queue) -> None:
    await queue.renew("process-1", 10, [], queues=OWN)
    await queue.renew("worker-1", 4, [])
    await message(queue, OWN[3], *others(1))
    of_own, of_other = await queue.standing([f"run of {OWN[3]}", f"run of {others(1)[0]}"])
    assert of_own is not None
    assert of_own.wait is not None
    assert (of_own.position, of_own.wait.p50) == (1, 0.0)
    assert of_other is not None
    assert of_other.wait is None
    own = await queue.statistics(OWN[3])
    assert (own.workers, own.slots) == (1, 10)


async def test_a_comparison_mends_the_lists_of_many_agents(queue: Queue, clients: RedisClients) -> None:
    await message(queue, *others(45))
    lost = f"{clients.keys.jobs}queue:{others(45)[30]}:pending"
    await clients.commands.delete(lost)
    swept = await queue.sweep(["user-1"])
    assert (swept.mended, len(swept.waiting)) == (1, 45)
    assert await clients.commands.lrange(lost, 0, -1) == [f"run of {others(45)[30]}"]
