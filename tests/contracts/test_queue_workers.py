"""Which workers live, how many runs each carries out, and which runs are a worker's own."""

import pytest

from backplane.domain.runs import Priority
from backplane.queue.base import Caps, Job, LiveWorker
from backplane.redis.client import RedisClients
from tests.queues import finish, redis_queue
from tests.waiting import wait_until


async def test_workers_are_listed_with_their_slots_and_their_runs(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.enqueue([Job(f"run-{number}", "user-1", Priority.NORMAL) for number in range(3)])
    first, second = await queue.claim("pod-a-1-x|y", 2)
    await queue.claim("pod-b-1-z", 1)
    await queue.renew("pod-a-1-x|y", 10, [first, second])
    await queue.renew("idle", 5, [])
    assert set(await queue.workers()) == {LiveWorker("pod-a-1-x|y", 10, 2), LiveWorker("idle", 5, 0)}
    assert await queue.worker_ids() == {"pod-a-1-x|y", "idle"}
    await finish(queue, first)
    await queue.deregister("idle")
    assert await queue.workers() == [LiveWorker("pod-a-1-x|y", 10, 1)]


async def test_a_worker_that_is_silent_for_a_lease_lives_no_more(clients: RedisClients) -> None:
    queue = redis_queue(clients, lease_seconds=0.1)
    await queue.renew("silent", 10, [])

    async def nobody() -> bool:
        return not await queue.workers() and not await queue.worker_ids()

    await wait_until(nobody)


# --- after a failover to a replica that knows a run only as it was before its newest claim ---


@pytest.mark.parametrize("taken_by", ["nobody", "another worker"])
async def test_a_run_whose_newest_claim_redis_has_lost_is_its_workers_again(
    clients: RedisClients, taken_by: str
) -> None:
    queue, job = redis_queue(clients), Job("a", "user-1", Priority.NORMAL, 0)
    await queue.enqueue([Job("a", "user-1", Priority.NORMAL, 1)])
    owned = await queue.claim("worker-1", 1)
    await clients.commands.flushall()
    await queue.enqueue([job])
    others = await queue.claim("worker-2", 1) if taken_by == "another worker" else []
    assert not (await queue.renew("worker-1", 10, owned)).lost
    assert (await queue.renew("worker-2", 10, others)).lost == {found.run_id for found in others}
    assert await queue.claim("worker-2", 1) == []
    statistics = await queue.statistics()
    assert (statistics.running, statistics.waiting) == (1, 0)
    await finish(queue, owned[0])
    assert (await queue.statistics()).running == 0


async def test_a_run_that_is_parked_again_by_a_lost_claim_is_its_workers_and_under_its_cap(
    clients: RedisClients,
) -> None:
    queue = redis_queue(clients, caps=Caps(user={Priority.NORMAL: 1}))
    mine, next_one = (Job(name, "user-1", Priority.NORMAL, 0) for name in ("mine", "next"))
    await queue.enqueue([mine])
    owned = await queue.claim("worker-1", 1)
    await clients.commands.flushall()
    await queue.enqueue([next_one, mine])
    [other] = await queue.claim("worker-2", 2)
    assert not (await queue.renew("worker-1", 10, owned)).lost
    await finish(queue, other)
    assert await queue.claim("worker-2", 2) == []
    await finish(queue, owned[0])
    statistics = await queue.statistics()
    assert (statistics.running, statistics.waiting) == (0, 0)
