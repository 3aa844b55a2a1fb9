"""Named queues: a worker takes runs of the queues that it serves, and one queue is in no other's way."""

import asyncio
from collections.abc import Sequence

import pytest

from backplane.domain.runs import DEFAULT_QUEUE, Priority
from backplane.queue.base import Caps, Full, Gate, Job, Limit, Queue, QueueRoom, Standing, Whereabouts
from backplane.redis.client import RedisClients
from tests.queues import finish, hand_back, postpone, redis_queue
from tests.waiting import wait_until

ALL = ("gpu", DEFAULT_QUEUE, "reports")


@pytest.fixture
def queue(clients: RedisClients) -> Queue:
    return redis_queue(clients)


async def enqueue(
    queue: Queue, *names: str, to: str = "gpu", user: str = "user-1", priority: Priority = Priority.NORMAL
) -> None:
    assert all(await queue.enqueue([Job(name, user, priority, queue=to) for name in names]))


async def taken(queue: Queue, *queues: str, limit: int = 100, worker: str = "worker-1") -> list[str]:
    return [claim.run_id for claim in await queue.claim(worker, limit, queues=queues)]


# --- claims ---


async def test_a_worker_takes_runs_of_its_own_queues_alone(queue: Queue) -> None:
    await enqueue(queue, "of gpu")
    await enqueue(queue, "of reports", to="reports")
    await enqueue(queue, "ordinary", to=DEFAULT_QUEUE)
    assert await taken(queue, DEFAULT_QUEUE) == ["ordinary"]
    assert await taken(queue, "reports", DEFAULT_QUEUE) == ["of reports"]
    assert await taken(queue, "gpu") == ["of gpu"]


async def test_a_claim_names_the_queue_of_the_run(queue: Queue) -> None:
    await enqueue(queue, "a")
    [claim] = await queue.claim("worker-1", 1, queues=["gpu"])
    assert claim.job.queue == "gpu"


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_runs_of_several_queues_are_taken_in_the_order_in_which_they_came(queue: Queue, limit: int) -> None:
    names = [f"run {number}" for number in range(12)]
    for number, name in enumerate(names):
        await enqueue(queue, name, to=ALL[number % 3])
    found: list[str] = []
    while some := await taken(queue, *ALL, limit=limit):
        assert len(some) <= limit
        found += some
    assert found == names


async def test_a_higher_priority_of_one_queue_comes_before_a_lower_one_of_another(queue: Queue) -> None:
    await enqueue(queue, "low", to=DEFAULT_QUEUE, priority=Priority.LOW)
    await enqueue(queue, "normal", to="gpu")
    await enqueue(queue, "critical", to="reports", priority=Priority.CRITICAL)
    await enqueue(queue, "high", to="gpu", priority=Priority.HIGH)
    assert await taken(queue, *ALL) == ["critical", "high", "normal", "low"]


async def test_a_queue_that_the_worker_does_not_serve_is_passed_over_however_early_its_runs_came(queue: Queue) -> None:
    for number in range(80):
        await enqueue(queue, f"early {number}", to=f"other-{number}", priority=Priority.CRITICAL)
    await enqueue(queue, "late", to="gpu", priority=Priority.LOW)
    assert await taken(queue, *ALL) == ["late"]


async def test_no_run_of_many_queues_is_taken_twice_and_none_is_left(queue: Queue) -> None:
    names = [f"q-{number}" for number in range(20)]
    for number in range(200):
        await enqueue(queue, f"run {number}", to=names[number % 20])

    async def work(number: int) -> list[str]:
        served = names[number % 5 :: 2] + names[:1]
        return [run for _ in range(40) for run in await taken(queue, *served, limit=3, worker=f"worker-{number}")]

    found = [run for runs in await asyncio.gather(*(work(number) for number in range(8))) for run in runs]
    assert sorted(found) == sorted({f"run {number}" for number in range(200)})


async def test_a_run_that_was_handed_back_waits_in_its_own_queue(queue: Queue) -> None:
    await enqueue(queue, "a")
    [claim] = await queue.claim("worker-1", 1, queues=["gpu"])
    await hand_back(queue, claim)
    assert await taken(queue, DEFAULT_QUEUE) == []
    assert await taken(queue, "gpu", DEFAULT_QUEUE) == ["a"]


async def test_an_attempt_that_is_due_waits_in_its_own_queue(queue: Queue) -> None:
    await enqueue(queue, "a")
    [claim] = await queue.claim("worker-1", 1, queues=["gpu"])
    await postpone(queue, claim, 0.0)

    async def is_due() -> bool:
        return (await queue.reap(10)).due == 1

    await wait_until(is_due)
    assert await taken(queue, DEFAULT_QUEUE) == []
    assert await taken(queue, "gpu") == ["a"]


async def test_a_run_of_a_lost_worker_waits_in_its_own_queue(clients: RedisClients) -> None:
    queue = redis_queue(clients, lease_seconds=0.01)
    await enqueue(queue, "a")
    assert await taken(queue, "gpu") == ["a"]

    async def is_lost() -> bool:
        return (await queue.reap(10)).lost == 1

    await wait_until(is_lost)
    assert await taken(queue, DEFAULT_QUEUE) == []
    assert await taken(queue, "gpu") == ["a"]


async def test_a_run_that_redis_has_lost_while_it_ran_is_written_again_with_its_queue(
    queue: Queue, clients: RedisClients
) -> None:
    await enqueue(queue, "a")
    [claim] = await queue.claim("worker-1", 1, queues=["gpu"])
    await clients.commands.delete(clients.keys.job("a"))
    await queue.renew("worker-1", 4, [claim], queues=["gpu"])
    await hand_back(queue, claim)
    assert await taken(queue, DEFAULT_QUEUE) == []
    assert await taken(queue, "gpu") == ["a"]


async def test_a_cancelled_run_leaves_its_queue(queue: Queue) -> None:
    await enqueue(queue, "a", "b")
    await queue.forget("a")
    assert await taken(queue, "gpu") == ["b"]


async def test_the_list_of_the_default_queue_has_its_runs_alone(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "a", to=DEFAULT_QUEUE)
    await enqueue(queue, "b", "c")
    assert await clients.commands.llen(clients.keys.pending[Priority.NORMAL]) == 1
    assert await clients.commands.llen(f"{clients.keys.jobs}queue:gpu:pending") == 2


# --- wake-ups ---


@pytest.mark.connection
@pytest.mark.parametrize("to", ALL)
async def test_a_worker_that_waits_is_woken_by_each_of_its_queues(queue: Queue, to: str) -> None:
    waiting = asyncio.create_task(queue.claim("worker-1", 1, 30.0, queues=ALL))
    await asyncio.sleep(0)
    await enqueue(queue, "a", to=to)
    async with asyncio.timeout(10):
        assert [claim.run_id for claim in await waiting] == ["a"]


@pytest.mark.connection
async def test_a_wake_up_that_a_busy_worker_took_wakes_another_one_that_serves_the_queue(queue: Queue) -> None:
    """The first worker is woken by `reports` and has room for one run, which it takes from `gpu`."""
    await enqueue(queue, "first", to="gpu", priority=Priority.CRITICAL)
    await enqueue(queue, "second", to="reports")
    [claim] = await queue.claim("worker-1", 1, 30.0, queues=["reports", "gpu"])
    assert claim.run_id == "first"
    async with asyncio.timeout(10):
        assert [claim.run_id for claim in await queue.claim("worker-2", 1, 30.0, queues=["reports"])] == ["second"]


@pytest.mark.connection
async def test_a_worker_that_stops_is_woken_whatever_queues_it_serves(queue: Queue) -> None:
    waiting = asyncio.create_task(queue.claim("worker-1", 1, 30.0, queues=ALL))
    await asyncio.sleep(0)
    await queue.end_wait("worker-1")
    async with asyncio.timeout(10):
        assert await waiting == []


# --- what is known of queues ---


async def test_the_depths_of_each_queue_are_apart(queue: Queue) -> None:
    await enqueue(queue, "a", "b")
    await enqueue(queue, "c", to=DEFAULT_QUEUE)
    await enqueue(queue, "d", to="reports", priority=Priority.HIGH)
    assert await taken(queue, "reports") == ["d"]
    await queue.renew("worker-1", 4, [], queues=["reports", "gpu"])
    await queue.renew("worker-2", 8, [])
    found = {of.queue: of for of in await queue.depths()}
    assert {name: of.by_priority[Priority.NORMAL].waiting for name, of in found.items()} == {
        "default": 1,
        "gpu": 2,
        "reports": 0,
    }
    assert {name: (of.workers, of.slots, of.running) for name, of in found.items()} == {
        "default": (1, 8, 0),
        "gpu": (1, 4, 0),
        "reports": (1, 4, 1),
    }


async def test_the_served_queues_are_those_of_live_workers(clients: RedisClients) -> None:
    queue, brief = redis_queue(clients), redis_queue(clients, lease_seconds=0.01)
    await queue.renew("worker-1", 4, [], queues=["gpu", DEFAULT_QUEUE])
    await brief.renew("dies", 4, [], queues=["reports"])
    await queue.renew("signs off", 4, [], queues=["nights"])
    await queue.deregister("signs off")

    async def are_those() -> bool:
        return await queue.served() == {"gpu", DEFAULT_QUEUE}

    await wait_until(are_those)
    await queue.reap(10)
    assert await clients.commands.hkeys(clients.keys.serving) == ["worker-1"]


async def test_a_position_counts_the_runs_of_the_same_queue_alone(queue: Queue) -> None:
    await enqueue(queue, "a", "b", to=DEFAULT_QUEUE)
    await enqueue(queue, "c", "d")
    assert [_position(found) for found in await queue.standing(["a", "b", "c", "d"])] == [1, 2, 1, 2]


async def test_a_run_of_a_queue_that_nobody_serves_has_no_estimate(queue: Queue) -> None:
    await queue.renew("worker-1", 4, [])
    await enqueue(queue, "a")
    await enqueue(queue, "b", to=DEFAULT_QUEUE)
    of_gpu, of_default = await queue.standing(["a", "b"])
    assert of_gpu is not None
    assert of_gpu.wait is None
    assert of_default is not None
    assert of_default.wait is not None


async def test_the_numbers_of_a_queue_are_those_of_the_workers_that_serve_it(queue: Queue) -> None:
    await queue.renew("worker-1", 4, [], queues=["gpu", "reports"])
    await queue.renew("worker-2", 8, [])
    await enqueue(queue, "a", "b", to="reports")
    await enqueue(queue, "c", to=DEFAULT_QUEUE)
    claims = await queue.claim("worker-1", 2, queues=["gpu", "reports"])
    await queue.renew("worker-1", 4, claims, queues=["gpu", "reports"])
    of_gpu = await queue.statistics("gpu")
    assert (of_gpu.workers, of_gpu.slots, of_gpu.running, of_gpu.waiting) == (1, 4, 2, 0)
    assert of_gpu.busy_with == {"reports": 2}
    assert of_gpu.served == {"gpu", "reports", DEFAULT_QUEUE}
    of_default = await queue.statistics()
    assert (of_default.workers, of_default.slots, of_default.running, of_default.waiting) == (1, 8, 0, 1)


async def test_runs_of_another_queue_of_the_same_worker_lengthen_the_wait(queue: Queue) -> None:
    """One slot, 60 s a run: the run of `gpu` is the first of its queue, and two of `reports` come before it."""
    await queue.renew("worker-1", 1, [], queues=["gpu", "reports"])
    await enqueue(queue, "r 1", "r 2", to="reports")
    await enqueue(queue, "g")
    [standing] = await queue.standing(["g"])
    assert standing is not None
    assert standing.wait is not None
    assert (standing.position, standing.wait.p50) == (1, 120.0)


async def test_of_another_queue_count_the_runs_that_the_shared_workers_take(queue: Queue) -> None:
    """Of two workers that serve `reports`, one serves `gpu` too: it takes every second run of `reports`."""
    await queue.renew("worker-1", 1, [], queues=["gpu", "reports"])
    await queue.renew("worker-2", 1, [], queues=["reports"])
    await enqueue(queue, "r 1", "r 2", "r 3", "r 4", to="reports")
    await enqueue(queue, "g")
    [standing] = await queue.standing(["g"])
    assert standing is not None
    assert standing.wait is not None
    assert standing.wait.p50 == 120.0


async def test_the_estimate_of_a_queue_comes_from_its_own_runs(queue: Queue) -> None:
    await queue.renew("worker-1", 1, [], queues=["gpu", "reports"])
    for name, seconds in (("gpu", 600.0), ("reports", 2.0)):
        await enqueue(queue, f"of {name}", to=name)
        [claim] = await queue.claim("worker-1", 1, queues=[name])
        await finish(queue, claim, seconds)
    assert (await queue.statistics("gpu")).durations == (600.0,)
    assert (await queue.statistics("reports")).durations == (2.0,)
    assert (await queue.statistics()).durations == ()


async def test_the_whereabouts_of_a_run_are_known_in_any_queue(queue: Queue) -> None:
    await enqueue(queue, "waits", "runs")
    [claim] = await queue.claim("worker-1", 1, queues=["gpu"])
    assert [await queue.whereabouts(run) for run in ("runs", claim.run_id)] == [Whereabouts.WAITS, Whereabouts.CLAIMED]


# --- caps and room ---


async def test_a_cap_of_a_user_counts_over_all_queues(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={Priority.NORMAL: 1}))
    await enqueue(queue, "a", to=DEFAULT_QUEUE)
    await enqueue(queue, "b")
    [parked] = await queue.standing(["b"])
    assert parked is not None
    assert parked.gate is Gate.USER
    [claim] = await queue.claim("worker-1", 1)
    await finish(queue, claim)
    assert await taken(queue, DEFAULT_QUEUE) == []
    assert await taken(queue, "gpu") == ["b"]


async def test_a_queue_that_is_full_refuses_runs_and_another_one_does_not(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(overall=10))
    for number in range(8):
        user = f"user-{number}"
        assert await queue.admit(f"run {number}", user, Priority.NORMAL, "gpu") is None
        await enqueue(queue, f"run {number}", user=user)
    assert await queue.admit("one more", "user-9", Priority.NORMAL, "gpu") == Full(Limit.OVERALL, 8, 8)
    assert await queue.admit("one more", "user-9", Priority.NORMAL) is None


async def test_runs_that_a_tier_holds_back_count_for_their_own_queue(clients: RedisClients) -> None:
    room = QueueRoom(tier={Priority.NORMAL: 3})
    queue = redis_queue(clients, caps=Caps(tier={Priority.NORMAL: 1}), room=room)
    for number in range(3):
        await enqueue(queue, f"run {number}", user=f"user-{number}")
    assert await queue.admit("one more", "user-9", Priority.NORMAL, "gpu") == Full(Limit.TIER, 3, 3)
    assert await queue.admit("one more", "user-9", Priority.NORMAL, "reports") is None


async def test_a_users_own_limit_counts_over_all_queues(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=2))
    await enqueue(queue, "a")
    await enqueue(queue, "b", to="reports")
    assert await queue.admit("c", "user-1", Priority.NORMAL) == Full(Limit.USER, 2, 2)


async def test_a_place_that_is_given_up_is_free_in_its_own_queue(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(tier={Priority.NORMAL: 2}))
    assert await queue.admit("a", "user-1", Priority.NORMAL, "gpu") is None
    assert isinstance(await queue.admit("b", "user-1", Priority.NORMAL, "gpu"), Full)
    await queue.give_up_place("a", "user-1", Priority.NORMAL, "gpu")
    assert await queue.admit("b", "user-1", Priority.NORMAL, "gpu") is None


# --- what is left behind ---


async def test_a_queue_in_which_nothing_waits_is_forgotten_by_a_comparison(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "a")
    [claim] = await queue.claim("worker-1", 1, queues=["gpu", DEFAULT_QUEUE])
    await finish(queue, claim, 1.0)
    await queue.sweep([])
    keys = [key async for key in clients.commands.scan_iter(f"{clients.keys.jobs}queue*")]
    assert keys == [f"{clients.keys.jobs}queue:gpu:durations"]
    assert 0 < await clients.commands.ttl(keys[0]) <= 7 * 24 * 3600
    assert await clients.commands.exists(f"{clients.keys.jobs}heads") == 0


def _position(standing: Standing | None) -> int | None:
    return standing.position if standing else None


async def test_a_platform_that_takes_the_queue_over_empties_the_named_queues_too(clients: RedisClients) -> None:
    queue, other = redis_queue(clients), redis_queue(clients)
    await queue.open("the old one")
    await enqueue(queue, "a", "b")
    await enqueue(queue, "c", to=DEFAULT_QUEUE)
    await other.open("the new one", take_over=True)
    assert await keys_of(clients, ("pending", "order", "queue", "heads")) == []


async def keys_of(clients: RedisClients, words: Sequence[str]) -> list[str]:
    keys = [key async for key in clients.commands.scan_iter(f"{clients.keys.jobs}*")]
    return [key for key in keys if any(word in key for word in words)]
