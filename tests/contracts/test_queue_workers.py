"""Which workers live, and how many runs each carries out."""

from backplane.domain.runs import Priority
from backplane.queue.base import Job, LiveWorker
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
