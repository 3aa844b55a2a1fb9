"""What every keeper of token buckets does. There is one adapter: Redis; two of it are two workers here."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from backplane.limits.buckets.base import Bucket, TokenBuckets
from backplane.limits.buckets.redis import FIRST_SECONDS, RENEWED_SECONDS, RedisTokenBuckets
from backplane.limits.slots.redis import RedisSlots
from backplane.redis.client import RedisClients
from tests.servers import RedisServer
from tests.waiting import wait_until

SLOW = Bucket("user/agent", 0.001, 100)
"""Nothing flows in while a test runs."""
OF_USER = Bucket("user", 0.001, 150)
QUICK = Bucket("quick", 200, 100)


@pytest.fixture
def buckets(clients: RedisClients) -> RedisTokenBuckets:
    return RedisTokenBuckets(clients, again_seconds=0.1)


@pytest.fixture
def other(clients: RedisClients) -> RedisTokenBuckets:
    return RedisTokenBuckets(clients, again_seconds=0.1)


async def take(buckets: TokenBuckets, estimate: float, *of: Bucket) -> None:
    """What must not have to wait."""
    await buckets.take("run", of or (SLOW,), estimate, lambda wait: pytest.fail(f"has to wait for {wait} s"))


@pytest.fixture
async def waiters() -> AsyncIterator["Waiters"]:
    waiters = Waiters()
    yield waiters
    await waiters.cancel_all()


class Waiters:
    """Calls that wait. `served`: names, in the order in which they got their tokens."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.waits: dict[str, list[float]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, buckets: TokenBuckets, name: str, estimate: float, *of: Bucket) -> None:
        """Start a call, and return once it knows that it has to wait."""
        self.waits[name] = []

        async def taking() -> None:
            await buckets.take(f"run-{name}", of or (SLOW,), estimate, self.waits[name].append)
            self.served.append(name)

        self._tasks[name] = asyncio.create_task(taking())
        await wait_until(lambda: self.waits[name] or name in self.served)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[name]

    async def cancel_all(self) -> None:
        for name in self._tasks:
            await self.cancel(name)

    async def until_served(self, *names: str, within: float = 10.0) -> None:
        """In this order, which is that of the answers: so all of one client."""
        await self.until_all_served(*names, within=within)
        assert self.served == list(names)

    async def until_all_served(self, *names: str, within: float = 10.0) -> None:
        await wait_until(lambda: len(self.served) >= len(names), within, f"{names} are served")
        assert sorted(self.served) == sorted(names)


# --- taking ---


async def test_a_full_bucket_gives_what_it_holds_at_once(buckets: TokenBuckets) -> None:
    await take(buckets, 60)
    await take(buckets, 40)
    assert await buckets.level(SLOW) == pytest.approx(0, abs=0.01)


async def test_a_bucket_that_was_never_used_is_full(buckets: TokenBuckets) -> None:
    assert await buckets.level(SLOW) == 100


async def test_what_a_bucket_lacks_is_waited_for(buckets: TokenBuckets, waiters: "Waiters") -> None:
    bucket = Bucket("b", 100, 100)
    await take(buckets, 100, bucket)
    await waiters.start(buckets, "a", 10, bucket)
    assert waiters.waits["a"] == [pytest.approx(0.1, abs=0.05)]
    await waiters.until_served("a")


async def test_more_than_a_bucket_can_hold_is_taken_from_a_full_one_and_owed(
    buckets: TokenBuckets, waiters: "Waiters"
) -> None:
    await take(buckets, 250)
    assert await buckets.level(SLOW) == pytest.approx(-150, abs=0.01)
    await waiters.start(buckets, "a", 250)
    assert waiters.waits["a"] == [pytest.approx(250_000, rel=0.01)]


async def test_all_buckets_give_or_none(buckets: TokenBuckets, waiters: "Waiters") -> None:
    await take(buckets, 100, SLOW, OF_USER)
    await waiters.start(buckets, "a", 20, SLOW, OF_USER)
    assert await buckets.level(OF_USER) == pytest.approx(50, abs=0.01)
    assert await buckets.level(SLOW) == pytest.approx(0, abs=0.01)


async def test_a_bucket_without_a_rate_has_no_limit_and_asks_nobody() -> None:
    clients = RedisClients("redis://127.0.0.1:1/0")
    buckets, bucket = RedisTokenBuckets(clients), Bucket("any", 0, 1)
    await take(buckets, 1e9, bucket)
    await buckets.settle([bucket], 1e9, 0)
    assert await buckets.level(bucket) == 1
    await clients.close()


async def test_fifty_who_take_at_once_get_exactly_what_is_there(
    buckets: TokenBuckets, other: TokenBuckets, waiters: "Waiters"
) -> None:
    """Of fifty calls for 7 tokens fourteen find enough in 100."""
    at_two = itertools.cycle((buckets, other))
    await asyncio.gather(*(waiters.start(next(at_two), f"{number}", 7) for number in range(50)))
    assert len(waiters.served) == 14
    assert await buckets.level(SLOW) == pytest.approx(2, abs=0.01)


# --- settling ---


async def test_what_was_taken_too_much_is_given_back_and_no_more_than_fits(buckets: TokenBuckets) -> None:
    await take(buckets, 80)
    await buckets.settle([SLOW], 80, 30)
    assert await buckets.level(SLOW) == pytest.approx(70, abs=0.01)
    await buckets.settle([SLOW], 80, 0)
    assert await buckets.level(SLOW) == 100


async def test_what_was_taken_too_little_is_owed(buckets: TokenBuckets) -> None:
    await take(buckets, 80, SLOW, OF_USER)
    await buckets.settle([SLOW, OF_USER], 80, 200)
    assert await buckets.level(SLOW) == pytest.approx(-100, abs=0.01)
    assert await buckets.level(OF_USER) == pytest.approx(-50, abs=0.01)


async def test_who_waits_goes_on_as_soon_as_something_is_given_back(
    buckets: TokenBuckets, other: TokenBuckets, waiters: "Waiters"
) -> None:
    await take(buckets, 100)
    await waiters.start(buckets, "near", 50)
    await waiters.start(other, "far", 50)
    await buckets.settle([SLOW], 100, 0)
    await waiters.until_all_served("near", "far")


async def test_those_who_wait_in_the_process_that_gives_back_need_not_ask(
    clients: RedisClients, waiters: "Waiters"
) -> None:
    buckets = RedisTokenBuckets(clients, again_seconds=600)
    await take(buckets, 100)
    await waiters.start(buckets, "a", 50)
    await waiters.start(buckets, "b", 50)
    await buckets.settle([SLOW], 100, 0)
    await waiters.until_served("a", "b", within=RENEWED_SECONDS / 2)


# --- who is next ---


async def test_calls_for_the_same_bucket_are_served_in_the_order_in_which_they_came(buckets: RedisTokenBuckets) -> None:
    """Whoever asks first at the moment when there is enough: here the last one does. The answers to two clients may be
    read in another order than Redis gave them, so the order is that of the script, in simulated time."""
    bucket, came = Bucket("b", 20, 100), dict(zip("abcdef", range(6), strict=True))
    assert await buckets.ask("all of it", 0, [bucket], 220, now=1000.0) == 0
    served: list[str] = []
    for tick in range(40):
        now = 1006.0 + tick / 4
        for name in sorted(set(came) - set(served), reverse=True):
            if await buckets.ask(name, now - 1000 - came[name], [bucket], 20, now=now) == 0:
                served.append(name)
    assert served == list("abcdef")


async def test_calls_of_one_process_are_served_in_the_order_in_which_they_came_beside_those_of_another(
    buckets: TokenBuckets, other: TokenBuckets, waiters: "Waiters"
) -> None:
    await take(buckets, 100, QUICK)
    await buckets.settle([QUICK], 100, 150)
    for name, where in zip("abcdef", (buckets, other, buckets, buckets, other, other), strict=True):
        await waiters.start(where, name, 20, QUICK)
    await waiters.until_all_served(*"abcdef")
    assert [name for name in waiters.served if name in "acd"] == list("acd")
    assert [name for name in waiters.served if name in "bef"] == list("bef")


async def test_small_calls_do_not_keep_a_large_one_out(
    buckets: TokenBuckets, other: TokenBuckets, waiters: "Waiters"
) -> None:
    await take(buckets, 50)
    await waiters.start(buckets, "large", 100)
    await waiters.start(other, "small", 1)
    assert waiters.served == []
    await buckets.settle([SLOW], 50, 0)
    await wait_until(lambda: waiters.served == ["large"])


async def test_an_agent_that_waits_for_its_own_bucket_does_not_hold_up_the_users_others(
    buckets: TokenBuckets, waiters: "Waiters"
) -> None:
    await take(buckets, 100, SLOW)
    await take(buckets, 140, OF_USER)
    # Both lack tokens for it; then those of the user suffice.
    await waiters.start(buckets, "a", 50, SLOW, OF_USER)
    await buckets.settle([OF_USER], 140, 0)
    await wait_until(lambda: _takes(buckets, 10, OF_USER))
    assert waiters.served == []


async def _takes(buckets: TokenBuckets, estimate: float, *of: Bucket) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await buckets.take("run", of, estimate, lambda _: None)
            return True
    return False


async def test_who_gives_up_takes_nothing_and_holds_nobody_up(buckets: TokenBuckets, waiters: "Waiters") -> None:
    await take(buckets, 50)
    await waiters.start(buckets, "a", 80)
    await waiters.start(buckets, "b", 40)
    assert waiters.served == []
    await waiters.cancel("a")
    # Sooner than who is silent is given up.
    await waiters.until_served("b", within=FIRST_SECONDS / 2)
    assert await buckets.level(SLOW) == pytest.approx(10, abs=0.01)


# --- Redis ---


async def test_a_script_that_is_sent_again_takes_once(buckets: RedisTokenBuckets) -> None:
    assert [await buckets.ask("ticket", 0, [SLOW], 60), await buckets.ask("ticket", 0, [SLOW], 60)] == [0, 0]
    assert await buckets.level(SLOW) == pytest.approx(40, abs=0.01)


async def test_redis_emptied_means_full_buckets(
    clients: RedisClients, buckets: TokenBuckets, waiters: "Waiters"
) -> None:
    await take(buckets, 500)
    await waiters.start(buckets, "a", 100)
    await clients.commands.flushall()
    await waiters.until_served("a")


async def test_while_redis_is_away_calls_wait(own_redis: Callable[..., RedisServer]) -> None:
    away = own_redis()
    clients = RedisClients(away.url)
    away.kill()
    taking = asyncio.create_task(take(RedisTokenBuckets(clients), 10))
    await asyncio.wait([taking], timeout=0.05)
    assert not taking.done()
    away.start()
    await taking
    await clients.close()


async def test_a_bucket_is_forgotten_when_it_is_full_again(clients: RedisClients, buckets: TokenBuckets) -> None:
    await take(buckets, 100, QUICK)
    assert 0 < await clients.commands.pttl(clients.keys.model_tokens("quick")) <= 5500


# --- simulated time ---


async def test_the_rate_holds_exactly_in_simulated_time(buckets: RedisTokenBuckets) -> None:
    """A call takes 3 as soon as it may: 100 at first, then 10 a second for a minute."""
    bucket, now, taken = Bucket("sim", 10, 100), 1000.0, 0
    while now <= 1060:
        wait = await buckets.ask(f"{taken}", 0, [bucket], 3, now=now)
        taken += 0 if wait else 3
        now += wait
    assert 697 <= taken <= 700


# --- why a run waits ---


async def test_what_a_run_waits_for_is_known_while_it_waits(
    clients: RedisClients, buckets: TokenBuckets, waiters: "Waiters"
) -> None:
    slots = RedisSlots(clients, lease_seconds=10, turn_seconds=1)
    await take(buckets, 100)
    await waiters.start(buckets, "a", 10)
    waiting = await slots.waiting("run-a")
    assert waiting is not None
    assert (waiting.what, waiting.position) == ("tokens", None)
    assert waiting.seconds == pytest.approx(10_000, rel=0.01)
    await waiters.cancel("a")
    assert await slots.waiting("run-a") is None
