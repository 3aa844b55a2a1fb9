"""What every rate limiter does, whoever keeps the counts. There is one adapter: Redis."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from backplane.limits.rates.redis import AHEAD, RedisRateLimiter
from backplane.redis.client import RedisClients
from tests.servers import RedisServer
from tests.waiting import wait_until

NEVER = 0.0001
"""A second: no permit comes back while a test runs."""
LIMITED_SECONDS = 5.0


def limiter(clients: RedisClients, *, per_second: float = NEVER, burst: int = 100) -> RedisRateLimiter:
    return RedisRateLimiter(clients, per_second=per_second, burst=burst)


async def granted(*calls: RedisRateLimiter, name: str = "a") -> int:
    """How many of these calls, made at once, are let through."""
    return (await asyncio.gather(*(one.take(name) for one in calls))).count(0.0)


async def granted_in_turn(*calls: RedisRateLimiter) -> int:
    return [await one.take("a") for one in calls].count(0.0)


async def test_as_many_as_the_bucket_holds_are_let_through_and_not_one_more(clients: RedisClients) -> None:
    assert await granted(*[limiter(clients)] * 300) == 100


async def test_calls_in_turn_are_counted_like_calls_at_once(clients: RedisClients) -> None:
    assert await granted_in_turn(*[limiter(clients)] * 150) == 100


async def test_all_processes_share_one_bucket(clients: RedisClients) -> None:
    one, other = limiter(clients), limiter(clients)
    assert await granted(*[one, other] * 150) == 100


async def test_processes_that_draw_ahead_never_grant_more_together(clients: RedisClients) -> None:
    one, other = limiter(clients), limiter(clients)
    assert 100 - AHEAD <= await granted_in_turn(*[one, other] * 100) <= 100


async def test_a_name_over_its_limit_is_in_no_others_way(clients: RedisClients) -> None:
    one = limiter(clients, burst=1)
    assert await granted(*[one] * 3, name="loud") == 1
    assert await granted(one, name="quiet") == 1


async def test_a_refused_call_learns_how_long_to_wait(clients: RedisClients) -> None:
    one = limiter(clients, per_second=0.1, burst=2)
    assert await granted(one, one) == 2
    assert 8.0 < await one.take("a") <= 10.0


async def test_refused_calls_cost_nothing(clients: RedisClients) -> None:
    one, other = limiter(clients, per_second=0.1, burst=1), limiter(clients, per_second=0.1, burst=1)
    await granted(*[one] * 100)
    await granted(*[other] * 100)
    assert await limiter(clients, per_second=0.1, burst=1).take("a") <= 10.0


async def test_permits_come_back(clients: RedisClients) -> None:
    one = limiter(clients, per_second=50, burst=1)
    assert await granted(one, one) == 1

    async def again() -> bool:
        return await one.take("a") == 0.0

    await wait_until(again)


async def test_a_bucket_that_is_full_again_leaves_no_key(clients: RedisClients) -> None:
    await limiter(clients, per_second=20, burst=1).take("a")
    key = clients.keys.rate("a")
    assert 0 < await clients.commands.pttl(key) <= 50

    async def gone() -> bool:
        return not await clients.commands.exists(key)

    await wait_until(gone)


async def test_a_clock_that_was_ahead_costs_no_more_than_a_full_bucket(clients: RedisClients) -> None:
    one = limiter(clients, per_second=1000, burst=10)
    await clients.commands.set(clients.keys.rate("a"), "99999999999999")
    assert 0.0 < await one.take("a") <= 0.01


async def test_a_call_that_costs_more_takes_more(clients: RedisClients) -> None:
    one = limiter(clients, burst=10)
    assert await one.take("a", 7) == 0.0
    assert await one.take("a", 7) > 0.0
    assert await granted(*[one] * 5) == 3


async def test_a_call_that_costs_more_than_there_can_be_takes_all(clients: RedisClients) -> None:
    one = limiter(clients, burst=10)
    assert await one.take("a", 99) == 0.0
    assert await one.take("a") > 0.0


async def test_without_a_limit_nobody_waits_and_nothing_is_kept(clients: RedisClients) -> None:
    assert await granted(*[limiter(clients, per_second=0, burst=1)] * 50) == 50
    assert await clients.commands.dbsize() == 0


@pytest.mark.parametrize("fault", ["gone", "silent"])
async def test_calls_are_let_through_while_redis_is_away_and_limited_when_it_is_back(
    own_redis: Callable[..., RedisServer], fault: str
) -> None:
    server = own_redis()
    clients = RedisClients(server.url)
    one = limiter(clients, burst=1)
    assert await granted(one, one) == 1
    assert server.pid is not None
    if fault == "gone":
        server.kill()
    else:
        os.kill(server.pid, signal.SIGSTOP)
    async with asyncio.timeout(LIMITED_SECONDS):
        assert await granted(*[one] * 50, name="b") == 50
    if fault == "gone":
        server.start()
    else:
        os.kill(server.pid, signal.SIGCONT)

    async def limited() -> bool:
        return await one.take("b") > 0.0

    await wait_until(limited)
    await clients.close()
