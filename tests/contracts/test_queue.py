"""What every queue does, whoever keeps it. There is one adapter: Redis, of which the last tests look at the keys."""

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from backplane.domain.runs import DEFAULT_QUEUE, Priority, RunStatus
from backplane.errors import Unavailable
from backplane.queue.base import Caps, Claim, Job, Queue, QueueRoom, Renewed, RunOutcome, Settlement
from backplane.redis import declared_keys as redis_keys
from backplane.redis.client import RedisClients
from tests.queues import finish, hand_back, known, postpone, redis_queue
from tests.servers import RedisServer
from tests.waiting import wait_until

LEASE_SECONDS = 0.2
RUN_SECONDS = 60.0


@pytest.fixture
def queue(clients: RedisClients) -> Queue:
    """Leases so long that none ends in a test."""
    return redis_queue(clients, run_seconds=RUN_SECONDS)


@pytest.fixture
def hasty(clients: RedisClients) -> Queue:
    """The same queue for a worker whose leases end at once."""
    return redis_queue(clients, lease_seconds=LEASE_SECONDS, run_seconds=RUN_SECONDS)


def job(name: str, priority: Priority = Priority.NORMAL, generation: int = 0) -> Job:
    return Job(name, "user-1", priority, generation)


async def enqueue(queue: Queue, *names: str, priority: Priority = Priority.NORMAL) -> None:
    assert all(await queue.enqueue([job(name, priority) for name in names]))


async def claim(queue: Queue, limit: int = 100, worker: str = "worker-1") -> list[str]:
    return [found.run_id for found in await queue.claim(worker, limit)]


async def claim_one(queue: Queue, worker: str = "worker-1") -> Claim:
    [found] = await queue.claim(worker, 1)
    return found


async def until_reaped(queue: Queue, lost: int = 0, due: int = 0) -> None:
    """Until so many wait again; more would fail."""
    total = (0, 0)

    async def all_do() -> bool:
        nonlocal total
        reaped = await queue.reap(100)
        total = (total[0] + reaped.lost, total[1] + reaped.due)
        return total >= (lost, due)

    await wait_until(all_do)
    assert total == (lost, due)


# --- order ---


async def test_runs_are_taken_in_the_order_in_which_they_came(queue: Queue) -> None:
    await enqueue(queue, "a", "b", "c")
    assert await claim(queue) == ["a", "b", "c"]


async def test_higher_priorities_are_taken_first(queue: Queue) -> None:
    for priority in Priority:
        await enqueue(queue, f"{priority.name} 1", f"{priority.name} 2", priority=priority)
    names = ["CRITICAL", "HIGH", "NORMAL", "LOW"]
    assert await claim(queue) == [f"{name} {count}" for name in names for count in (1, 2)]


async def test_no_more_are_taken_than_asked_for(queue: Queue) -> None:
    await enqueue(queue, "a", "b", "c")
    assert [await claim(queue, 2), await claim(queue, 2), await claim(queue, 2)] == [["a", "b"], ["c"], []]


async def test_a_claim_knows_whose_run_it_is(queue: Queue) -> None:
    await queue.enqueue([Job("a", "somebody", Priority.HIGH, 7)])
    assert await claim_one(queue) == Claim(Job("a", "somebody", Priority.HIGH, 8), crashes=0)


async def test_a_run_is_queued_once_however_often_it_is_enqueued(queue: Queue) -> None:
    assert [await queue.enqueue([job("a")]) for _ in range(3)] == [[True], [False], [False]]
    assert await claim(queue) == ["a"]


async def test_a_run_that_is_running_or_scheduled_is_not_queued_twice(queue: Queue) -> None:
    await enqueue(queue, "is held", "is scheduled")
    _, scheduled = await queue.claim("worker-1", 2)
    await postpone(queue, scheduled, 600)
    assert await queue.enqueue([job("is held"), job("is scheduled")]) == [False, False]


# --- holding ---


async def test_no_run_is_taken_by_two_workers(queue: Queue) -> None:
    names = {f"run-{number}" for number in range(500)}
    await enqueue(queue, *sorted(names))
    taken = await asyncio.gather(*(claim(queue, 7, f"worker-{number}") for number in range(80)))
    flat = [name for names_taken in taken for name in names_taken]
    assert len(flat) == 500
    assert set(flat) == names


async def test_each_claim_of_a_run_has_a_higher_generation(queue: Queue) -> None:
    await enqueue(queue, "a")
    generations = []
    for _ in range(3):
        owned = await claim_one(queue)
        generations.append(owned.generation)
        await hand_back(queue, owned)
    assert generations == [1, 2, 3]


async def test_a_generation_of_the_database_is_never_given_again(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "a")
    await hand_back(queue, await claim_one(queue))
    await clients.commands.flushall()
    await queue.enqueue([job("a", generation=5)])
    assert (await claim_one(queue)).generation == 6


async def test_a_run_whose_lease_ended_is_taken_again_and_the_crash_is_counted(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "a")
    crashes = []
    for _ in range(3):
        crashes.append((await claim_one(hasty)).crashes)
        await until_reaped(queue, lost=1)
    assert crashes == [0, 1, 2]


async def test_a_run_whose_worker_was_lost_goes_before_those_that_wait(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "lost")
    await claim_one(hasty)
    await enqueue(queue, "waiting")
    await until_reaped(queue, lost=1)
    assert await claim(queue) == ["lost", "waiting"]


async def test_no_more_lost_runs_are_queued_again_at_once_than_asked_for(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "a", "b", "c")
    await hasty.claim("worker-1", 3)
    await wait_until(lambda: _reaps(queue, 2, 2))
    await wait_until(lambda: _reaps(queue, 2, 1))


async def _reaps(queue: Queue, limit: int, lost: int) -> bool:
    return (await queue.reap(limit)).lost == lost


async def test_a_lease_that_is_renewed_does_not_end(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "renewed", "left alone")
    renewed, _ = await hasty.claim("worker-1", 2)
    assert await queue.renew("worker-1", 10, [renewed]) == Renewed(frozenset(), leads=True)
    await until_reaped(queue, lost=1)
    assert await claim(queue) == ["left alone"]


async def test_renewing_names_the_runs_that_other_workers_have(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "mine", "taken over", "over")
    mine, taken_over, finished = await hasty.claim("worker-1", 3)
    await queue.renew("worker-1", 10, [mine, finished])
    await until_reaped(queue, lost=1)
    await claim_one(queue, "worker-2")
    await finish(queue, finished, None)
    assert (await queue.renew("worker-1", 10, [mine, taken_over, finished])).lost == {"taken over", "over"}


async def test_a_running_run_is_known_again_after_redis_was_emptied(queue: Queue, clients: RedisClients) -> None:
    await queue.enqueue([Job("a", "somebody", Priority.HIGH)])
    owned = await claim_one(queue)
    await clients.commands.flushall()
    assert await known(queue, ["a"]) == [False]
    assert await queue.renew("worker-1", 10, [owned]) == Renewed(frozenset(), leads=True)
    assert await known(queue, ["a"]) == [True]
    assert await queue.enqueue([job("a", generation=owned.generation)]) == [False]
    await hand_back(queue, owned)
    assert await claim_one(queue) == Claim(Job("a", "somebody", Priority.HIGH, owned.generation + 1))


async def test_one_worker_leads_until_it_is_lost(queue: Queue, hasty: Queue) -> None:
    assert [(await hasty.renew(worker, 1, [])).leads for worker in ("first", "second", "first")] == [True, False, True]

    async def second_leads() -> bool:
        return (await queue.renew("second", 1, [])).leads

    await wait_until(second_leads)
    assert not (await hasty.renew("first", 1, [])).leads


# --- letting go ---


async def test_a_run_that_is_given_back_is_the_next_one(queue: Queue) -> None:
    await enqueue(queue, "a", "b")
    await hand_back(queue, await claim_one(queue))
    assert await claim(queue) == ["a", "b"]


async def test_a_run_that_is_given_back_for_later_waits_until_then(queue: Queue) -> None:
    await enqueue(queue, "soon", "late")
    soon, late = await queue.claim("worker-1", 2)
    await postpone(queue, late, 600)
    await postpone(queue, soon, 0.05)
    assert (await queue.statistics()).scheduled == 2
    await until_reaped(queue, due=1)
    assert await claim(queue) == ["soon"]


async def test_a_run_that_is_set_aside_comes_back_after_the_delay_with_its_crashes(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "a")
    await claim_one(hasty)
    await until_reaped(queue, lost=1)
    await queue.settle([Settlement(await claim_one(queue), RunOutcome.SET_ASIDE, delay_seconds=0.05)])
    assert (await queue.statistics()).scheduled == 1
    assert await queue.crashes("a") == 1
    await until_reaped(queue, due=1)
    assert (await claim_one(queue)).crashes == 1


async def test_a_run_that_is_postponed_has_no_crashes_and_neither_has_one_that_nobody_knows(
    queue: Queue, hasty: Queue
) -> None:
    await enqueue(queue, "a")
    await claim_one(hasty)
    await until_reaped(queue, lost=1)
    await postpone(queue, await claim_one(queue), 600)
    assert [await queue.crashes(run_id) for run_id in ("a", "unknown")] == [0, 0]


async def test_giving_back_forgives_crashes(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "a")
    await claim_one(hasty)
    await until_reaped(queue, lost=1)
    await hand_back(queue, await claim_one(queue))
    assert (await claim_one(queue)).crashes == 0


@pytest.mark.parametrize("let_go", ["finish", "release"])
async def test_an_old_claim_can_let_nothing_go(queue: Queue, hasty: Queue, let_go: str) -> None:
    await enqueue(queue, "a")
    old = await claim_one(hasty)
    await until_reaped(queue, lost=1)
    new = await claim_one(queue, "worker-2")
    await (finish(queue, old, 1.0) if let_go == "finish" else hand_back(queue, old))
    assert await queue.renew("worker-2", 10, [new]) == Renewed(frozenset(), leads=True)
    assert await claim(queue) == []
    assert (await queue.statistics()).running == 1


async def test_a_finished_run_may_be_queued_again_with_the_next_generation(queue: Queue) -> None:
    await enqueue(queue, "a")
    await finish(queue, await claim_one(queue), 1.0)
    assert await known(queue, ["a"]) == [False]
    await enqueue(queue, "a")
    assert (await claim_one(queue)).generation == 2


async def test_a_run_that_ends_while_it_waits_again_is_not_taken(queue: Queue, hasty: Queue) -> None:
    await enqueue(queue, "a", "b")
    slow = await claim_one(hasty)
    await until_reaped(queue, lost=1)
    await finish(queue, slow, 1.0)
    assert await claim(queue) == ["b"]


async def test_a_forgotten_run_is_taken_by_nobody(queue: Queue) -> None:
    await enqueue(queue, "waits", "is scheduled", "stays")
    _, scheduled = await queue.claim("worker-1", 2)
    await postpone(queue, scheduled, 0.01)
    await enqueue(queue, "waits too")
    for name in ("is scheduled", "waits too", "never seen"):
        await queue.forget(name)
    assert (await queue.reap(100)).due == 0
    assert await claim(queue) == ["stays"]


async def test_a_running_run_is_not_forgotten(queue: Queue) -> None:
    await enqueue(queue, "a")
    owned = await claim_one(queue)
    await queue.forget("a")
    assert await queue.renew("worker-1", 10, [owned]) == Renewed(frozenset(), leads=True)


async def test_a_run_that_is_disowned_is_its_workers_again(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "a")
    owned = await claim_one(queue)
    await clients.commands.flushall()  # as a replica that knows nothing yet
    await enqueue(queue, "a")
    second = await claim_one(queue, "worker-2")
    assert second.generation == owned.generation
    await queue.settle([Settlement(second, RunOutcome.DISOWNED)])
    assert await known(queue, ["a"]) == [False]
    assert not (await queue.renew("worker-1", 1, [owned])).lost
    assert await known(queue, ["a"]) == [True]


# --- waiting ---


def waiting_worker(queue: Queue, limit: int = 1, worker: str = "waits") -> "asyncio.Task[list[Claim]]":
    return asyncio.create_task(queue.claim(worker, limit, 600))


async def until_blocked(clients: RedisClients, workers: int = 1) -> None:
    async def blocked() -> bool:
        return bool((await clients.commands.info("clients"))["blocked_clients"] == workers)

    await wait_until(blocked)


async def claimed_by(waiting: "asyncio.Task[list[Claim]]") -> list[str]:
    async with asyncio.timeout(3):
        return [found.run_id for found in await waiting]


@pytest.mark.connection
async def test_a_run_wakes_a_worker_that_waits_and_is_its_own(queue: Queue, clients: RedisClients) -> None:
    waiting = waiting_worker(queue)
    await until_blocked(clients)
    await enqueue(queue, "a")
    assert await claimed_by(waiting) == ["a"]


@pytest.mark.connection
@pytest.mark.parametrize("comes", ["back", "due", "lost"])
async def test_a_run_that_comes_again_wakes_a_worker_too(
    queue: Queue, hasty: Queue, clients: RedisClients, comes: str
) -> None:
    await enqueue(queue, "a")
    owned = await claim_one(hasty if comes == "lost" else queue)
    waiting = waiting_worker(queue)
    await until_blocked(clients)
    if comes == "back":
        await hand_back(queue, owned)
    elif comes == "due":
        await postpone(queue, owned, 0.01)
        await until_reaped(queue, due=1)
    else:
        await until_reaped(queue, lost=1)
    assert await claimed_by(waiting) == ["a"]


@pytest.mark.connection
async def test_each_run_of_a_batch_wakes_a_worker(queue: Queue, clients: RedisClients) -> None:
    waiting = [waiting_worker(queue, worker=f"worker-{number}") for number in range(3)]
    await until_blocked(clients, 3)
    await queue.enqueue([job("a"), job("b"), job("c")])
    assert sorted([await claimed_by(one) for one in waiting]) == [["a"], ["b"], ["c"]]


@pytest.mark.connection
async def test_a_worker_that_leaves_runs_in_the_queue_wakes_another(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "a", "b")
    await clients.commands.delete(clients.keys.wake_ups)
    assert await claim(queue, 1) == ["a"]
    assert await claimed_by(waiting_worker(queue)) == ["b"]


@pytest.mark.connection
async def test_waiting_ends_by_itself(queue: Queue) -> None:
    async with asyncio.timeout(3):
        assert await queue.claim("worker-1", 1, 0.05) == []


@pytest.mark.connection
async def test_a_wait_that_ends_without_a_bell_looks_once_more(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, "a")
    await clients.commands.delete(clients.keys.wake_ups)
    assert [found.run_id for found in await queue.claim("worker-1", 1, 0.05)] == ["a"]


@pytest.mark.connection
async def test_a_worker_that_drains_waits_no_longer_and_takes_nothing(queue: Queue, clients: RedisClients) -> None:
    leaves, stays = waiting_worker(queue, worker="leaves"), waiting_worker(queue, worker="stays")
    await until_blocked(clients, 2)
    await clients.commands.delete(clients.keys.wake_ups)
    await queue.end_wait("leaves")
    assert await claimed_by(leaves) == []
    await enqueue(queue, "a")
    assert await claimed_by(stays) == ["a"]


@pytest.mark.connection
async def test_a_run_that_comes_as_a_worker_drains_is_for_the_next_one(queue: Queue) -> None:
    await queue.end_wait("leaves")
    await enqueue(queue, "a")
    assert await queue.claim("leaves", 1, 600) == []
    assert await claimed_by(waiting_worker(queue)) == ["a"]


@pytest.mark.connection
async def test_a_cancel_reaches_all_workers(queue: Queue, clients: RedisClients) -> None:
    async with queue.cancels() as first, queue.cancels() as second:
        hearing = [asyncio.ensure_future(anext(announced)) for announced in (first, second)]

        async def both_listen() -> bool:
            return bool((await clients.commands.pubsub_numsub(clients.keys.cancels))[0][1] == 2)

        await wait_until(both_listen)
        await queue.announce_cancel("a")
        assert await asyncio.gather(*hearing) == ["a", "a"]


# --- numbers ---


async def test_runs_stand_in_the_order_in_which_they_will_be_taken(queue: Queue) -> None:
    await enqueue(queue, "normal 1", "normal 2")
    await enqueue(queue, "low", priority=Priority.LOW)
    await enqueue(queue, "critical", priority=Priority.CRITICAL)
    found = await queue.standing(["critical", "normal 1", "normal 2", "low", "unknown"])
    assert [standing and standing.position for standing in found] == [1, 2, 3, 4, None]


async def test_a_running_run_stands_nowhere(queue: Queue) -> None:
    await enqueue(queue, "a")
    await claim_one(queue)
    assert await queue.standing(["a"]) == [None]


async def test_the_wait_is_estimated_from_the_slots_and_what_the_last_runs_took(queue: Queue) -> None:
    await enqueue(queue, "done", "held", "next", "after next")
    done, owned = await queue.claim("worker-1", 2)
    await finish(queue, done, 10.0)
    await queue.renew("worker-1", 2, [owned])
    numbers = await queue.statistics()
    assert (numbers.durations, numbers.slots, numbers.workers, numbers.running) == ((10.0,), 2, 1, 1)
    found = await queue.standing(["next", "after next"])
    assert [standing and standing.wait and standing.wait.p50 for standing in found] == [0.0, 5.0]


async def test_while_no_worker_is_alive_no_wait_is_estimated(queue: Queue) -> None:
    await enqueue(queue, "a")
    [standing] = await queue.standing(["a"])
    assert standing is not None
    assert standing.wait is None


async def test_before_any_run_was_measured_one_counts_as_long_as_is_set(queue: Queue) -> None:
    await enqueue(queue, "held", "next")
    await queue.renew("worker-1", 1, await queue.claim("worker-1", 1))
    [standing] = await queue.standing(["next"])
    assert standing is not None
    assert standing.wait is not None
    assert standing.wait.p50 == RUN_SECONDS


async def test_the_numbers_of_the_queue_are_its_runs(queue: Queue) -> None:
    await enqueue(queue, "a", "b", "c")
    await enqueue(queue, "d", priority=Priority.LOW)
    _, b = await queue.claim("worker-1", 2)
    await postpone(queue, b, 600)
    numbers = await queue.statistics()
    assert numbers.queued == {Priority.CRITICAL: 0, Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 1}
    assert (numbers.running, numbers.scheduled) == (1, 1)
    assert await known(queue, ["a", "b", "c", "d", "e"]) == [True, True, True, True, False]


async def test_a_worker_counts_while_it_beats_and_until_it_is_deregistered(queue: Queue, hasty: Queue) -> None:
    await queue.renew("stays", 3, [])
    await queue.renew("leaves", 3, [])
    await hasty.renew("dies", 3, [])
    assert (await queue.statistics()).slots == 9
    await queue.deregister("leaves")

    async def only_one_stays() -> bool:
        await queue.reap(100)
        return (await queue.statistics()).slots == 3

    await wait_until(only_one_stays)


# --- Redis ---


async def test_every_call_says_so_when_redis_is_away(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    clients = RedisClients(server.url)
    queue = redis_queue(clients, room=QueueRoom(overall=100))
    await enqueue(queue, "a")
    owned = await claim_one(queue)
    server.kill()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: queue.enqueue([job("b")]),
        lambda: queue.claim("worker-1", 1),
        lambda: queue.claim("worker-1", 1, 1.0),
        lambda: queue.end_wait("worker-1"),
        lambda: queue.give_up_place("b", "user-1", Priority.NORMAL),
        queue.finished,
        lambda: queue.mirror_dead({"a": 1.0}),
        lambda: queue.admit("b", "user-1", Priority.NORMAL),
        lambda: queue.renew("worker-1", 1, [owned]),
        lambda: finish(queue, owned, None),
        lambda: hand_back(queue, owned),
        lambda: queue.forget("b"),
        lambda: queue.reap(1),
        lambda: known(queue, ["a"]),
        lambda: queue.deregister("worker-1"),
        lambda: queue.announce_cancel("a"),
        queue.statistics,
        lambda: queue.standing(["a"]),
        lambda: queue.sweep(["user-1"]),
        lambda: queue.compare([job("a")]),
        lambda: queue.nearest_of("user-1"),
        lambda: queue.next_attempt("a"),
        queue.served,
        queue.depths,
        queue.workers,
    ]
    for call in calls:
        with pytest.raises(Unavailable) as refused:
            await call()
        assert refused.value.part == "redis"
    server.start()
    await enqueue(queue, "b")
    assert await claim(queue) == ["b"]
    await clients.close()


async def test_every_key_is_in_the_key_table_and_lives_as_long_as_it_says(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={Priority.LOW: 1}), room=QueueRoom(overall=100))
    await queue.open("a database")
    for priority in Priority:
        await enqueue(queue, *(f"{priority.name}-{count}" for count in range(3)), priority=priority)
        await queue.enqueue([Job(f"{priority.name}-{n}", "user-2", priority, queue="gpu") for n in range(3, 6)])
    await queue.admit("to come", "user-1", Priority.HIGH)
    await queue.admit("to come", "user-2", Priority.HIGH, "gpu")
    [of_gpu] = await queue.claim("worker-1", 1, queues=["gpu"])
    await finish(queue, of_gpu, 1.0)
    finished, scheduled, *_ = await queue.claim("worker-1", 5)
    await queue.renew("worker-1", 10, [], queues=["gpu", DEFAULT_QUEUE])
    await queue.settle([Settlement(finished, RunOutcome.FINISHED, RunStatus.FAILED, "x", 1.0, is_dead=True)])
    await postpone(queue, scheduled, 600)
    await queue.end_wait("worker-2")
    redis = clients.commands
    lifetimes = {
        clients.keys.wake_ups_of("worker-2"): 60,
        clients.keys.admitted(Priority.HIGH): 10,
        clients.keys.admitted(Priority.HIGH, "gpu"): 10,
        clients.keys.admitted_of("user-1"): 10,
        clients.keys.admitted_of("user-2"): 10,
        f"{clients.keys.jobs}queue:gpu:durations": 7 * 24 * 3600,
        clients.keys.leader: 600,
    }
    seen = set()
    async for name in redis.scan_iter():
        entry = key_of(name.removeprefix(clients.keys.prefix))
        seen.add(entry.pattern)
        assert (await redis.type(name)) == {"sorted set": "zset"}.get(entry.type, entry.type), name
        seconds = await redis.ttl(name)
        if name in lifetimes:
            assert lifetimes[name] - 5 < seconds <= lifetimes[name]
        else:
            assert seconds == -1, name
            assert "permanent" in entry.lifetime or "while it waits or is held" in entry.lifetime
    assert seen == {key.pattern for key in redis_keys.KEYS if key.type != "channel" and key.pattern.startswith("jobs:")}


def key_of(name: str) -> redis_keys.Key:
    """The table's entry of a key: the most literal one that fits."""
    fitting = [
        key
        for key in redis_keys.KEYS
        if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(key.pattern)), name) and key.type != "channel"
    ]
    assert fitting, f"{name} is not in the table"
    return max(fitting, key=lambda key: len(re.sub(r"\{\w+\}", "", key.pattern)))


async def test_a_run_that_is_queued_again_is_not_cleared_away_with_its_last_end(queue: Queue) -> None:
    await enqueue(queue, "a")
    await finish(queue, await claim_one(queue))
    await enqueue(queue, "a")
    [waiting] = await queue.claim("worker-1", 1)
    await hand_back(queue, waiting)
    others = [job(f"other-{number}", Priority.CRITICAL) for number in range(120)]
    await queue.enqueue(others)
    for owned in await queue.claim("worker-1", 120):
        await finish(queue, owned)
    assert await claim(queue) == ["a"]


async def test_lists_that_only_grow_are_cut(queue: Queue, clients: RedisClients) -> None:
    await enqueue(queue, *(f"run-{number}" for number in range(150)))
    assert await clients.commands.llen(clients.keys.wake_ups) == 100
    for owned in await queue.claim("worker-1", 150):
        await finish(queue, owned, 1.0)
    assert await clients.commands.llen(clients.keys.durations) == 100
