"""Who goes first when not all can go: ageing, caps, and the limit on what waits."""

import asyncio

import pytest

from backplane.domain.runs import Priority, RunStatus
from backplane.queue.base import Caps, Claim, Full, Gate, Job, Limit, Queue, QueueRoom, RunOutcome, Settlement
from backplane.queue.redis import RedisQueue
from backplane.redis.client import RedisClients
from tests.queues import finish, hand_back, known, postpone, redis_queue
from tests.waiting import wait_until

LOW, NORMAL, HIGH, CRITICAL = Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL


def job(name: str, user: str = "user-1", priority: Priority = NORMAL, resource: str = "") -> Job:
    return Job(name, user, priority, 0, resource)


def names(claims: list[Claim]) -> list[str]:
    return [claim.run_id for claim in claims]


async def in_which_order(queue: Queue) -> list[str]:
    return names(await queue.claim("worker-1", 100))


# --- ageing ---


async def test_a_run_that_has_waited_long_enough_goes_before_a_higher_priority(clients: RedisClients) -> None:
    queue = redis_queue(clients, ageing_seconds=0.01)
    await queue.enqueue([job("low", priority=LOW)])
    await asyncio.sleep(0.05)  # what is tested is the passing of time itself
    await queue.enqueue([job("high", priority=HIGH)])
    assert await in_which_order(queue) == ["low", "high"]


async def test_a_run_that_has_not_waited_long_enough_stays_behind(clients: RedisClients) -> None:
    queue = redis_queue(clients, ageing_seconds=600)
    await queue.enqueue([job("low", priority=LOW), job("normal"), job("high", priority=HIGH)])
    assert await in_which_order(queue) == ["high", "normal", "low"]


@pytest.mark.parametrize("ageing_seconds", [0.001, 600])
async def test_critical_runs_come_first_whatever_the_others_have_waited(
    clients: RedisClients, ageing_seconds: float
) -> None:
    queue = redis_queue(clients, ageing_seconds=ageing_seconds)
    await queue.enqueue([job("high", priority=HIGH)])
    await asyncio.sleep(0.02)
    await queue.enqueue([job("critical", priority=CRITICAL)])
    assert await in_which_order(queue) == ["critical", "high"]


async def test_without_ageing_no_waiting_counts(clients: RedisClients) -> None:
    queue = redis_queue(clients, ageing_seconds=0)
    await queue.enqueue([job("low", priority=LOW)])
    await asyncio.sleep(0.02)
    await queue.enqueue([job("normal"), job("high", priority=HIGH)])
    assert await in_which_order(queue) == ["high", "normal", "low"]


async def test_positions_have_ageing_in_mind(clients: RedisClients) -> None:
    queue = redis_queue(clients, ageing_seconds=0.01)
    await queue.enqueue([job("low", priority=LOW)])
    await asyncio.sleep(0.05)
    await queue.enqueue([job("high", priority=HIGH)])
    found = await queue.standing(["low", "high"])
    assert [standing and standing.position for standing in found] == [1, 2]


async def test_a_run_that_is_handed_back_keeps_the_place_that_its_waiting_gave_it(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.enqueue([job("first"), job("second"), job("third")])
    first, second = await queue.claim("worker-1", 2)
    await hand_back(queue, second)
    await hand_back(queue, first)
    assert await in_which_order(queue) == ["first", "second", "third"]


# --- caps ---


async def test_no_more_runs_of_a_user_are_taken_than_its_cap(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 2}))
    await queue.enqueue([job(f"run-{number}") for number in range(5)])
    assert await in_which_order(queue) == ["run-0", "run-1"]


async def test_each_run_that_is_over_lets_the_next_of_its_user_in(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await queue.enqueue([job(name) for name in ("a", "b", "c")])
    order = []
    for _ in range(3):
        [claim] = await queue.claim("worker-1", 10)
        order.append(claim.run_id)
        await finish(queue, claim)
    assert order == ["a", "b", "c"]


async def test_one_users_backlog_is_in_nobody_elses_way(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 2}))
    await queue.enqueue([job(f"many-{number}", "greedy") for number in range(100)])
    await queue.enqueue([job("one", "modest")])
    assert await in_which_order(queue) == ["many-0", "many-1", "one"]


async def test_users_over_their_cap_take_turns_with_those_who_came_later(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await queue.enqueue([job(f"many-{number}", "greedy") for number in range(3)])
    await queue.enqueue([job(f"few-{number}", "modest") for number in range(2)])
    order = []
    for _ in range(5):
        [claim] = await queue.claim("worker-1", 1)
        order.append(claim.run_id)
        await finish(queue, claim)
    assert order == ["many-0", "few-0", "many-1", "few-1", "many-2"]


async def test_each_tier_has_a_cap_of_its_own_for_its_users(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={LOW: 1, HIGH: 2}))
    await queue.enqueue([job(f"free-{number}", "free", LOW) for number in range(3)])
    await queue.enqueue([job(f"beta-{number}", "beta", HIGH) for number in range(3)])
    await queue.enqueue([job(f"standard-{number}", "standard") for number in range(3)])
    taken = await in_which_order(queue)
    assert taken == ["beta-0", "beta-1", "standard-0", "standard-1", "standard-2", "free-0"]


async def test_the_users_of_a_tier_share_its_cap(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(tier={LOW: 2}))
    await queue.enqueue([job(f"free-{number}", f"user-{number}", LOW) for number in range(4)])
    claims = await queue.claim("worker-1", 10)
    assert names(claims) == ["free-0", "free-1"]
    await finish(queue, claims[0])
    assert await in_which_order(queue) == ["free-2"]


async def test_a_resource_is_used_by_no_more_runs_than_it_takes(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(resources={"model-server": 2}))
    await queue.enqueue([job(f"uses-{number}", f"user-{number}", resource="model-server") for number in range(4)])
    await queue.enqueue([job("does not")])
    claims = await queue.claim("worker-1", 10)
    assert names(claims) == ["uses-0", "uses-1", "does not"]
    await finish(queue, claims[2])
    assert await in_which_order(queue) == []
    await finish(queue, claims[1])
    assert await in_which_order(queue) == ["uses-2"]


async def test_all_caps_hold_at_once_and_everything_gets_through(clients: RedisClients) -> None:
    caps = Caps(user={LOW: 2, NORMAL: 3}, tier={LOW: 3}, resources={"gpu": 2})
    queue = redis_queue(clients, caps=caps)
    jobs = [
        job(f"run-{number}", f"user-{number % 4}", (LOW, NORMAL)[number % 2], ("", "gpu", "")[number % 3])
        for number in range(120)
    ]
    await queue.enqueue(jobs)
    done: list[str] = []
    owned: list[Claim] = []
    while len(done) < len(jobs):
        owned += await queue.claim("worker-1", 3)
        assert owned, f"the queue stands still after {len(done)} of {len(jobs)}"
        for user in {claim.job.user_id for claim in owned}:
            own = [claim for claim in owned if claim.job.user_id == user]
            assert len(own) <= caps.user[own[0].job.priority]
        assert sum(claim.job.priority is LOW for claim in owned) <= 3
        assert sum(claim.job.resource == "gpu" for claim in owned) <= 2
        over = owned.pop(0)
        await finish(queue, over)
        done.append(over.run_id)
    assert sorted(done) == sorted(one.run_id for one in jobs)
    assert [key async for key in clients.commands.scan_iter(f"{clients.keys.jobs}held:*")] == []
    assert [key async for key in clients.commands.scan_iter(f"{clients.keys.jobs}parked*")] == []
    assert await clients.commands.exists(f"{clients.keys.jobs}gates") == 0


@pytest.mark.parametrize("leaves", ["cancelled", "put off", "handed back", "lost"])
async def test_a_run_that_leaves_in_another_way_gives_its_place_up_or_keeps_it(
    clients: RedisClients, leaves: str
) -> None:
    caps = Caps(user={NORMAL: 1})
    queue = redis_queue(clients, caps=caps)
    hasty = redis_queue(clients, caps=caps, lease_seconds=0.001)
    await queue.enqueue([job("first"), job("second")])
    if leaves == "cancelled":
        await queue.forget("first")
        assert await in_which_order(queue) == ["second"]
        return
    [claim] = await (hasty if leaves == "lost" else queue).claim("worker-1", 1)
    if leaves == "put off":
        await postpone(queue, claim, 600)
        assert await in_which_order(queue) == ["second"]
    elif leaves == "handed back":
        await hand_back(queue, claim)
        assert await in_which_order(queue) == ["first"]
    else:

        async def is_reaped() -> bool:
            return (await queue.reap(10)).lost == 1

        await wait_until(is_reaped)
        assert await in_which_order(queue) == ["first"]


async def test_a_parked_run_can_be_cancelled(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await queue.enqueue([job(name) for name in ("a", "b", "c")])
    await queue.forget("b")
    [claim] = await queue.claim("worker-1", 10)
    await finish(queue, claim)
    assert await in_which_order(queue) == ["c"]
    assert (await queue.statistics()).waiting == 0


async def test_a_parked_run_is_not_queued_beside(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    assert await queue.enqueue([job("a"), job("b"), job("b")]) == [True, True, False]
    assert await known(queue, ["b"]) == [True]


async def test_an_attempt_that_is_due_is_under_its_caps_again(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await queue.enqueue([job("failed"), job("next")])
    [failed] = await queue.claim("worker-1", 1)
    await postpone(queue, failed, 0.001)
    [follower] = await queue.claim("worker-1", 1)

    async def is_due() -> bool:
        return (await queue.reap(10)).due == 1

    await wait_until(is_due)
    assert await in_which_order(queue) == []
    await finish(queue, follower)
    assert await in_which_order(queue) == ["failed"]


@pytest.mark.parametrize(("new_cap", "expected"), [(3, ["b", "c"]), (0, ["b", "c", "d"])])
async def test_a_cap_that_is_raised_or_taken_away_lets_parked_runs_in(
    clients: RedisClients, new_cap: int, expected: list[str]
) -> None:
    tight = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await tight.enqueue([job(name) for name in ("a", "b", "c", "d")])
    assert await in_which_order(tight) == ["a"]
    wide = redis_queue(clients, caps=Caps(user={NORMAL: new_cap}))
    assert (await wide.reap(10)).let_in == len(expected)
    assert await in_which_order(wide) == expected


async def test_a_running_run_counts_under_its_cap_again_after_redis_was_emptied(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await queue.enqueue([job("first"), job("second")])
    claims = await queue.claim("worker-1", 10)
    await clients.commands.flushall()
    await queue.renew("worker-1", 10, claims)
    await queue.enqueue([job("second")])
    assert await in_which_order(queue) == []
    await finish(queue, claims[0])
    assert await in_which_order(queue) == ["second"]


async def test_a_parked_run_stands_behind_what_may_go_and_says_which_cap_holds_it(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}, tier={LOW: 1}, resources={"gpu": 1}))
    await queue.enqueue(
        [
            job("mine", "a"),
            job("mine too", "a"),
            job("free", "b", LOW),
            job("free too", "c", LOW),
            job("on the gpu", "d", HIGH, "gpu"),
            job("on the gpu too", "e", HIGH, "gpu"),
        ]
    )
    found = await queue.standing(["mine", "mine too", "free too", "on the gpu too"])
    assert [(standing.position, standing.gate, standing.cap) for standing in found if standing] == [
        (2, None, 0),
        (4, Gate.USER, 1),
        (4, Gate.TIER, 1),
        (4, Gate.RESOURCE, 1),
    ]
    numbers = await queue.statistics()
    assert (sum(numbers.queued.values()), sum(numbers.parked.values()), numbers.waiting) == (3, 3, 6)


async def test_a_parked_run_waits_for_as_many_runs_as_are_before_it_though_slots_are_free(
    clients: RedisClients,
) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}), run_seconds=10.0)
    await queue.enqueue([job(name) for name in ("a", "b", "c")])
    claims = await queue.claim("worker-1", 1)
    await queue.renew("worker-1", 10, claims)
    found = await queue.standing(["b", "c"])
    assert [standing and standing.wait and standing.wait.p50 for standing in found] == [10.0, 20.0]


# --- the limits on what waits ---


async def has_room(queue: RedisQueue, run_id: str, user: str = "user-1", priority: Priority = NORMAL) -> bool:
    return await queue.admit(run_id, user, priority) is None


async def test_as_many_of_a_user_may_wait_as_there_is_room_and_no_more(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=2))
    assert [await has_room(queue, name) for name in ("a", "b", "c")] == [True, True, False]
    await queue.enqueue([job("a"), job("b")])
    assert await queue.admit("c", "user-1", HIGH) == Full(Limit.USER, 2, 2)
    await queue.claim("worker-1", 1)
    assert await has_room(queue, "c", priority=HIGH)


async def test_what_one_user_has_waiting_takes_no_place_from_another(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}), room=QueueRoom(user=3, overall=3))
    await queue.enqueue([job(name, user="bob") for name in ("a", "b", "c")])
    assert not await has_room(queue, "d", "bob")
    assert await has_room(queue, "d", "user-1")


async def test_runs_that_a_users_own_cap_holds_back_count_for_that_user(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}), room=QueueRoom(user=2))
    await queue.enqueue([job("a"), job("b")])
    assert await queue.admit("c", "user-1", NORMAL) == Full(Limit.USER, 2, 2, cap=1)


async def test_a_run_counts_as_waiting_until_it_is_taken_and_again_when_it_comes_back(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=1))
    await queue.enqueue([job("a")])
    [owned] = await queue.claim("worker-1", 1)
    assert await has_room(queue, "b")
    await queue.give_up_place("b", "user-1", NORMAL)
    await hand_back(queue, owned)
    assert not await has_room(queue, "b")
    await queue.forget("a")
    assert await has_room(queue, "b")


async def test_a_run_that_redis_lost_on_its_way_keeps_no_place(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=1))
    await queue.enqueue([job("a")])
    await clients.commands.delete(clients.keys.job("a"))
    assert await has_room(queue, "b")


async def test_the_whole_queue_has_a_limit_of_its_own(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(overall=10))
    await queue.enqueue([job(str(number), user=f"user-{number}") for number in range(8)])
    assert await queue.admit("one more", "user-1", NORMAL) == Full(Limit.OVERALL, 8, 8)


@pytest.mark.parametrize(("priority", "waiting"), [(LOW, 7), (NORMAL, 8), (HIGH, 9), (CRITICAL, 10)])
async def test_the_last_tenths_of_the_queue_are_kept_for_higher_priorities(
    clients: RedisClients, priority: Priority, waiting: int
) -> None:
    queue = redis_queue(clients, room=QueueRoom(overall=10))
    await queue.enqueue([job(str(number), user=f"user-{number}") for number in range(waiting - 1)])
    assert await has_room(queue, "fits", "user-1", priority)
    assert await queue.admit("one more", "bob", priority) == Full(Limit.OVERALL, waiting, waiting)


async def test_no_user_takes_more_than_half_of_what_is_for_all(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(overall=10))
    await queue.enqueue([job(str(number)) for number in range(5)])
    assert await queue.admit("one more", "user-1", CRITICAL) == Full(Limit.SHARE, 5, 5)
    assert await has_room(queue, "one more", "bob")


async def test_a_tier_has_room_of_its_own(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(tier={LOW: 1}))
    await queue.enqueue([job("a", priority=LOW), job("b"), job("c")])
    assert await queue.admit("d", "bob", LOW) == Full(Limit.TIER, 1, 1)
    assert await has_room(queue, "e")


@pytest.mark.parametrize("cap", [Caps(tier={NORMAL: 1}), Caps(resources={"gpu": 1})])
async def test_runs_that_wait_for_others_than_their_users_own_count_for_all(clients: RedisClients, cap: Caps) -> None:
    queue = redis_queue(clients, caps=cap, room=QueueRoom(overall=5))
    await queue.enqueue([job(str(number), user=f"user-{number}", resource="gpu") for number in range(4)])
    assert await queue.admit("one more", "user-1", NORMAL) == Full(Limit.OVERALL, 4, 4)


async def test_a_place_that_is_given_up_is_free_again(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=1, overall=1))
    assert await has_room(queue, "a")
    await queue.give_up_place("a", "user-1", NORMAL)
    assert await has_room(queue, "b")


async def test_who_asks_twice_has_one_place(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=2))
    assert [await has_room(queue, name) for name in ("a", "a", "b")] == [True, True, True]


@pytest.mark.parametrize("room", [QueueRoom(user=20), QueueRoom(overall=25)])
async def test_many_who_ask_at_once_get_no_more_places_than_there_are(clients: RedisClients, room: QueueRoom) -> None:
    queue = redis_queue(clients, room=room)
    users = ["user-1" if room.user else f"user-{number}" for number in range(100)]
    admitted = await asyncio.gather(*(has_room(queue, f"run-{n}", user) for n, user in enumerate(users)))
    assert sum(admitted) == 20


# --- what is over ---


async def test_the_last_hundred_that_ended_stay_at_hand_newest_first(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.enqueue([job(f"run-{number:03}") for number in range(130)])
    claims = await queue.claim("worker-1", 130)
    await queue.settle(
        [Settlement(claim, RunOutcome.FINISHED, RunStatus.FAILED, "step_failed") for claim in claims[:30]]
    )
    for claim in claims[30:]:
        await finish(queue, claim, 1.0)
    finished = await queue.finished()
    assert [one.run_id for one in finished] == [f"run-{number:03}" for number in range(129, 29, -1)]
    assert finished[0].queued_at <= finished[0].claimed_at <= finished[0].finished_at
    assert await clients.commands.exists(clients.keys.job("run-029"), clients.keys.job("run-030")) == 1


async def test_a_finished_job_says_how_it_ended(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.enqueue([job("failed"), job("cancelled", "user-2")])
    [claim] = await queue.claim("worker-1", 1)
    await queue.settle([Settlement(claim, RunOutcome.FINISHED, RunStatus.FAILED, "step_failed")])
    await queue.forget("cancelled")
    cancelled, failed = await queue.finished()
    assert (failed.user_id, failed.status, failed.error) == ("user-1", RunStatus.FAILED, "step_failed")
    assert (cancelled.user_id, cancelled.status, cancelled.claimed_at) == ("user-2", RunStatus.CANCELLED, 0.0)


async def test_a_run_that_died_is_among_the_dead_until_it_is_said_otherwise(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.enqueue([job("a")])
    [claim] = await queue.claim("worker-1", 1)
    await queue.settle([Settlement(claim, RunOutcome.FINISHED, RunStatus.FAILED, "worker_lost", is_dead=True)])
    assert (await queue.statistics()).dead == 1
    await queue.mirror_dead({"b": 2.0, "c": 1.0})
    assert await clients.commands.zrange(clients.keys.dead, 0, -1) == ["c", "b"]
    await queue.mirror_dead({})
    assert (await queue.statistics()).dead == 0


async def test_many_are_settled_in_one_call_and_those_of_other_workers_are_passed_over(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    hasty = redis_queue(clients, lease_seconds=0.001)
    await queue.enqueue([job(name) for name in ("over", "back", "later", "taken over")])
    over, back, later = await queue.claim("worker-1", 3)
    [lost] = await hasty.claim("worker-1", 1)

    async def is_reaped() -> bool:
        return (await queue.reap(10)).lost == 1

    await wait_until(is_reaped)
    [taken_over] = await queue.claim("worker-2", 1)
    batch = [
        Settlement(over, RunOutcome.FINISHED, RunStatus.COMPLETED),
        Settlement(back, RunOutcome.HANDED_BACK),
        Settlement(later, RunOutcome.POSTPONED, delay_seconds=600),
        Settlement(lost, RunOutcome.FINISHED, RunStatus.COMPLETED),
    ]
    await queue.settle(batch)
    await queue.settle(batch)
    assert await in_which_order(queue) == ["back"]
    assert not (await queue.renew("worker-2", 1, [taken_over])).lost
    numbers = await queue.statistics()
    assert (numbers.running, numbers.scheduled) == (2, 1)


async def test_a_reserved_place_that_has_expired_lets_nobody_in(clients: RedisClients) -> None:
    queue = redis_queue(clients, room=QueueRoom(user=1))
    assert await has_room(queue, "a")
    assert await has_room(queue, "a")
    for places in (clients.keys.admitted(NORMAL), clients.keys.admitted_of("user-1")):
        await clients.commands.zadd(places, {"a": 1})
    await queue.enqueue([job("b")])
    assert not await has_room(queue, "a")


# --- how long it takes ---


async def test_the_wait_counts_how_long_the_running_runs_have_run(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(user={NORMAL: 1}))
    await queue.enqueue([job("over")])
    await finish(queue, (await queue.claim("worker-1", 1))[0], 1.0)
    await queue.enqueue([job("long"), job("held back"), job("other", user="user-2")])
    await queue.renew("worker-1", 2, await queue.claim("worker-1", 2))
    for name in ("long", "other"):
        await clients.commands.hincrbyfloat(clients.keys.job(name), "claimed_at", -20_000)
    await queue.enqueue([job("next", user="user-3")])
    held_back, first = await queue.standing(["held back", "next"])
    assert held_back is not None
    assert first is not None
    assert held_back.wait is not None
    assert first.wait is not None
    assert (round(held_back.wait.p50), round(first.wait.p50)) == (20, 10)
