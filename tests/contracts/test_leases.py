"""One of several processes, for so long at a time."""

from backplane.leases.redis import RedisLease
from backplane.redis.client import RedisClients
from tests.waiting import wait_until


def lease(clients: RedisClients, owner: str, seconds: float = 600) -> RedisLease:
    return RedisLease(clients, clients.keys.counting("rows"), owner, seconds=seconds)


async def test_one_has_it_and_may_renew_it(clients: RedisClients) -> None:
    one, other = lease(clients, "one"), lease(clients, "other")
    assert await one.hold()
    assert not await other.hold()
    assert await one.hold()
    assert (one.is_over, other.is_over) == (False, True)


async def test_what_is_given_up_is_free_at_once(clients: RedisClients) -> None:
    one, other = lease(clients, "one"), lease(clients, "other")
    await one.hold()
    await one.give_up()
    assert one.is_over
    assert await other.hold()


async def test_nobody_gives_up_what_another_has(clients: RedisClients) -> None:
    one, other = lease(clients, "one"), lease(clients, "other")
    await one.hold()
    await other.give_up()
    assert not await other.hold()


async def test_a_lease_that_is_not_renewed_ends_for_its_owner_too(clients: RedisClients) -> None:
    one, other = lease(clients, "one", seconds=0.1), lease(clients, "other")
    assert await one.hold()
    await wait_until(other.hold)
    assert one.is_over
    assert not await one.hold()


async def test_redis_forgets_a_lease_that_nobody_renews(clients: RedisClients) -> None:
    await lease(clients, "one").hold()
    assert 590 < await clients.commands.ttl(clients.keys.counting("rows")) <= 600
