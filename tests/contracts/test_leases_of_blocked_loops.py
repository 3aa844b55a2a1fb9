"""What renews the leases of a process whose event loop is blocked, over connections of its own."""

from contextlib import AsyncExitStack
from typing import cast

from backplane.domain.runs import Priority
from backplane.limits.slots.base import SlotRequest
from backplane.limits.slots.redis import RedisSlots
from backplane.queue.base import Job
from backplane.redis.client import RedisClients
from tests.queues import redis_queue
from tests.waiting import wait_until

REQUEST = SlotRequest("server", "m", "user-1", "run-1", "call-1")


async def test_a_worker_that_may_not_lead_keeps_its_runs_and_lets_another_lead(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.enqueue([Job("run-1", "user-1", Priority.NORMAL)])
    claims = await queue.claim("blocked", 1)
    renewed = await queue.renew("blocked", 10, claims, may_lead=False)
    assert (renewed.leads, renewed.lost) == (False, frozenset())
    assert (await queue.renew("other", 10, [])).leads
    assert await queue.worker_ids() == {"blocked", "other"}


async def test_a_leader_that_may_not_lead_any_more_is_followed_by_another(clients: RedisClients) -> None:
    queue = redis_queue(clients, lease_seconds=0.1)
    assert (await queue.renew("blocked", 10, [])).leads

    async def another_leads() -> bool:
        await queue.renew("blocked", 10, [], may_lead=False)
        return (await queue.renew("other", 10, [])).leads

    await wait_until(another_leads)


async def test_a_run_that_another_worker_has_is_not_renewed(clients: RedisClients) -> None:
    short, queue = redis_queue(clients, lease_seconds=0.001), redis_queue(clients)
    await queue.enqueue([Job("run-1", "user-1", Priority.NORMAL)])
    lost = await short.claim("blocked", 1)
    while not (await queue.reap(10)).lost:
        pass
    assert (await queue.renew("blocked", 10, lost, may_lead=False)).lost == {"run-1"}
    others = await queue.claim("other", 1)
    assert (await queue.renew("blocked", 10, lost, may_lead=False)).lost == {"run-1"}
    assert not (await queue.renew("other", 10, others)).lost


async def test_slots_of_a_process_are_renewed_by_the_connections_of_another_object(clients: RedisClients) -> None:
    blocked, keeper = (RedisSlots(clients, lease_seconds=600, turn_seconds=600) for _ in range(2))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            blocked.hold(REQUEST, parallel=1, models=0, on_wait=lambda place: None)  # nobody else is there
        )
        key = f"{clients.keys.models}server:server"
        before = cast(dict[str, str], await clients.commands.hgetall(key))
        [lease] = [field for field in before if field.startswith("w:")]
        await keeper.renew_for(blocked)
        after = cast(dict[str, str], await clients.commands.hgetall(key))
        assert int(after.pop(lease)) > int(before.pop(lease))
        assert after == before
