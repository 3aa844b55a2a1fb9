"""Whose queue a Redis holds, and in which format."""

from typing import Any

import pytest

from backplane.domain.runs import Priority
from backplane.errors import QueueOfAnother, Unavailable
from backplane.queue.base import Job
from backplane.queue.platform import FORMAT
from backplane.redis.client import RedisClients
from tests.queues import finish, postpone, redis_queue

OURS, THEIRS = "our-database", "their-database"


def job(name: str) -> Job:
    return Job(name, "user", Priority.NORMAL)


async def test_a_second_platform_is_refused_with_the_setting_that_keeps_them_apart(clients: RedisClients) -> None:
    await redis_queue(clients).open(OURS)
    with pytest.raises(QueueOfAnother, match="Set REDIS_KEY_PREFIX to one that no other platform uses"):
        await redis_queue(clients).open(THEIRS)


async def test_any_number_of_processes_of_one_platform_and_a_restored_backup_are_let_in(clients: RedisClients) -> None:
    for _ in range(3):
        queue = redis_queue(clients)
        await queue.open(OURS)
        await queue.examine(OURS)


async def test_to_examine_whose_queue_it_is_changes_nothing(clients: RedisClients) -> None:
    await redis_queue(clients).examine(OURS)
    assert await clients.commands.get(clients.keys.platform) is None
    await redis_queue(clients).open(THEIRS)
    with pytest.raises(QueueOfAnother):
        await redis_queue(clients).examine(OURS)


@pytest.mark.connection
async def test_whoever_writes_first_after_redis_was_emptied_owns_it_and_the_other_takes_nothing(
    clients: RedisClients,
) -> None:
    ours, theirs = redis_queue(clients), redis_queue(clients)
    await ours.open(OURS)
    await ours.enqueue([job("held")])
    [claim] = await ours.claim("worker", 1)
    await clients.commands.delete(*[key async for key in clients.commands.scan_iter(f"{clients.keys.prefix}*")])
    await theirs.open(THEIRS)
    await theirs.enqueue([job("a")])
    for call in (
        lambda: ours.claim("worker", 1),
        lambda: ours.claim("worker", 1, 0.01),
        lambda: ours.enqueue([job("b")]),
        lambda: ours.renew("worker", 1, [claim]),
        lambda: ours.reap(1),
        lambda: ours.compare([job("b")]),
        lambda: ours.sweep([]),
        lambda: ours.forget("a"),
        lambda: finish(ours, claim),
    ):
        with pytest.raises(Unavailable, match="REDIS_KEY_PREFIX"):
            await call()
    assert [found.run_id for found in await theirs.claim("worker", 1)] == ["a"]


async def test_a_process_that_runs_writes_its_platform_again_when_redis_was_emptied(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.open(OURS)
    await clients.commands.delete(clients.keys.platform)
    await queue.renew("worker", 1, [])
    with pytest.raises(QueueOfAnother):
        await redis_queue(clients).open(THEIRS)


async def test_a_queue_that_is_taken_over_is_empty_and_closed_to_the_platform_before(clients: RedisClients) -> None:
    ours, theirs = redis_queue(clients), redis_queue(clients)
    await theirs.open(THEIRS)
    await theirs.enqueue([job("waits"), job("held"), job("later")])
    _, later = await theirs.claim("worker", 2)
    await postpone(theirs, later, 600)
    await ours.open(OURS, take_over=True)
    assert [key async for key in clients.commands.scan_iter(f"{clients.keys.jobs}*")] == [clients.keys.platform]
    with pytest.raises(Unavailable):
        await theirs.claim("worker", 1)
    await ours.enqueue([job("mine")])
    assert [found.run_id for found in await ours.claim("worker", 1)] == ["mine"]


async def test_taking_over_ones_own_queue_removes_nothing(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    await queue.open(OURS)
    await queue.enqueue([job("a")])
    await queue.open(OURS, take_over=True)
    assert [found.run_id for found in await queue.claim("worker", 1)] == ["a"]


async def test_a_newer_format_is_refused_with_what_to_do(clients: RedisClients) -> None:
    await clients.commands.set(clients.keys.platform, f"{FORMAT + 1} {OURS}")
    with pytest.raises(QueueOfAnother, match=f"has format {FORMAT + 1}.*up to {FORMAT}.*newer release"):
        await redis_queue(clients).open(OURS)
    assert await clients.commands.get(clients.keys.platform) == f"{FORMAT + 1} {OURS}"


async def test_a_process_that_runs_is_refused_when_a_newer_release_has_migrated_the_queue(
    clients: RedisClients,
) -> None:
    queue = redis_queue(clients)
    await queue.open(OURS)
    await clients.commands.set(clients.keys.platform, f"{FORMAT + 1} {OURS}")
    with pytest.raises(Unavailable):
        await queue.enqueue([job("a")])


async def test_the_first_process_migrates_the_layout_that_had_no_order(clients: RedisClients) -> None:
    """As the first release wrote it: runs stood in the lists alone."""
    redis, keys = clients.commands, clients.keys
    jobs = {
        "first": ("queued", Priority.NORMAL, 0),
        "second": ("queued", Priority.NORMAL, 3),
        "urgent": ("queued", Priority.HIGH, 0),
        "lost": ("running", Priority.NORMAL, 1),
        "later": ("scheduled", Priority.NORMAL, 1),
    }
    for name, (state, priority, generation) in jobs.items():
        old: dict[Any, Any] = {"state": state, "user": "user", "generation": generation, "crashes": 0}
        old |= {"priority": int(priority), "list": keys.pending[priority]}
        await redis.hset(keys.job(name), mapping=old)
        if state == "queued":
            await redis.lpush(keys.pending[priority], name)
    await redis.zadd(keys.leases, {"lost": 1})
    await redis.zadd(keys.scheduled, {"later": 1})
    first, second = redis_queue(clients), redis_queue(clients)
    await first.open(OURS)
    await second.open(OURS)
    assert await redis.get(keys.platform) == f"{FORMAT} {OURS}"
    claims = await second.claim("worker", 10)
    assert [(claim.run_id, claim.generation) for claim in claims] == [("urgent", 1), ("first", 1), ("second", 4)]
    reaped = await second.reap(10)
    assert (reaped.lost, reaped.due) == (1, 1)
    assert sorted(claim.run_id for claim in await second.claim("worker", 10)) == ["later", "lost"]


async def test_a_layout_of_today_is_not_changed_by_the_first_process(clients: RedisClients) -> None:
    old, new = redis_queue(clients), redis_queue(clients)
    await old.enqueue([job("a"), job("b")])
    before = await clients.commands.zrange(clients.keys.order, 0, -1, withscores=True)
    await new.open(OURS)
    assert await clients.commands.zrange(clients.keys.order, 0, -1, withscores=True) == before
