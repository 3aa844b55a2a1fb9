"""Whatever the queue loses, and whatever contradicts in it: one comparison with the database mends it, and every run is
taken and ends, in the order in which it would have been.

One world has a run in every place where a run can be: it may be taken, is parked at each kind of cap, waits for its
next attempt, is held by a worker that lives, by one that was lost, and is over. The tests break a copy of it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from backplane.domain.runs import DEFAULT_QUEUE, Ownership, Priority, RunStatus, UnfinishedRun
from backplane.queue.base import Caps, Claim, Job, Queue
from backplane.redis.client import RedisClients
from backplane.store.runs import Runs
from tests.queues import finish, postpone, redis_queue
from worker import reconciler
from worker.reconciler import Reconciled, Reconciler

LOW, NORMAL, HIGH, CRITICAL = Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL
CAPS = Caps(user={NORMAL: 2}, tier={LOW: 1}, resources={"gpu": 1})
AGO_SECONDS = 60.0
"""How long ago the runs came, for the database and for Redis: nobody takes them for such as are on their way."""
QUEUES = {DEFAULT_QUEUE: "", "nights": "queue:nights:"}
"""What stands behind `jobs:` in the names of a queue's keys."""
SEEDS = [
    *range(8),
    *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 300)],
]


class Database:
    """What the database says of the runs; the part that a reconciler asks."""

    def __init__(self, rows: Iterable[UnfinishedRun] = ()) -> None:
        self.rows = {row.id: row for row in rows}
        self.over: dict[str, RunStatus] = {}

    async def unfinished(self, *, after: str = "", limit: int = 500) -> list[UnfinishedRun]:
        return [self.rows[run_id] for run_id in sorted(self.rows) if run_id > after][:limit]

    async def ownerships(self, run_ids: Iterable[str]) -> dict[str, Ownership]:
        found = {run_id: Ownership(row.status, row.generation) for run_id, row in self.rows.items()}
        found |= {run_id: Ownership(status, 1) for run_id, status in self.over.items()}
        return {run_id: found[run_id] for run_id in run_ids if run_id in found}

    def end(self, run_id: str) -> None:
        del self.rows[run_id]
        self.over[run_id] = RunStatus.COMPLETED

    def copy(self) -> "Database":
        copied = Database(self.rows.values())
        copied.over = dict(self.over)
        return copied


@dataclass
class World:
    clients: RedisClients
    queue: Queue
    database: Database = field(default_factory=Database)
    alive: list[Claim] = field(default_factory=list)
    """What a worker holds that lives."""
    dump: dict[str, bytes] = field(default_factory=dict)

    @property
    def redis(self) -> Any:
        return self.clients.commands

    async def keys(self) -> list[str]:
        return sorted([key async for key in self.redis.scan_iter(f"{self.clients.keys.prefix}*")])

    async def add(
        self, name: str, user: str, priority: Priority, resource: str = "", queue: str = DEFAULT_QUEUE
    ) -> None:
        queued_at = datetime.fromtimestamp(time.time() - AGO_SECONDS, UTC)
        row = UnfinishedRun(name, user, RunStatus.QUEUED, priority, 0, resource or None, queued_at, queue)
        self.database.rows[name] = row
        assert all(await self.queue.enqueue([Job(name, user, priority, 0, resource, queued_at.timestamp(), queue)]))

    def has(self, name: str, status: RunStatus, generation: int) -> None:
        self.database.rows[name] = replace(self.database.rows[name], status=status, generation=generation)

    async def reconcile(self) -> Reconciled:
        """The living worker's heartbeat, and one comparison."""
        await self.queue.renew("alive", 4, self.alive)
        # What has no lease gets one; here it ends at once.
        queue = redis_queue(self.clients, caps=CAPS, lease_seconds=0.001)
        return await Reconciler(cast(Runs, self.database), queue, lease_seconds=0.0).reconcile()

    async def drain(self) -> list[str]:
        """All runs carried out one after the other; the order in which they were taken."""
        order: list[str] = []
        for claim in self.alive:
            await finish(self.queue, claim)
            self.database.end(claim.run_id)
        while True:
            await self.queue.reap(100)
            claims = await self.queue.claim("drains", 1, queues=[*QUEUES])
            if not claims:
                return order
            [claim] = claims
            order.append(claim.run_id)
            assert claim.generation > self.database.rows[claim.run_id].generation
            await finish(self.queue, claim)
            self.database.end(claim.run_id)


async def build(clients: RedisClients) -> World:
    queue = redis_queue(clients, caps=CAPS)
    await queue.open("a database")
    hasty = redis_queue(clients, caps=CAPS, lease_seconds=0.001)
    world = World(clients, queue)
    await world.add("is over", "elsewhere", CRITICAL)
    await world.add("is alive", "elsewhere", CRITICAL, "gpu")
    over, alive = await queue.claim("alive", 2)
    await finish(queue, over)
    world.database.end("is over")
    world.alive = [alive]
    world.has("is alive", RunStatus.RUNNING, 1)
    for number in range(5):
        await world.add(f"greedy {number}", "greedy", NORMAL)
    [lost] = await hasty.claim("lost", 1)
    world.has(lost.run_id, RunStatus.RUNNING, lost.generation)
    await world.add("lost elsewhere", "elsewhere", HIGH, queue="nights")
    [lost] = await hasty.claim("lost", 1, queues=["nights"])
    world.has(lost.run_id, RunStatus.RUNNING, lost.generation)
    for number in range(2):
        await world.add(f"modest {number}", "modest", NORMAL)
        await world.add(f"free {number}", f"free {number}", LOW)
        await world.add(f"gpu {number}", f"gpu {number}", HIGH, "gpu")
        await world.add(f"tonight {number}", f"sleeper {number}", HIGH, queue="nights")
        await world.add(f"greedy tonight {number}", "greedy", NORMAL, queue="nights")
    await world.add("later", "later", CRITICAL)
    [later] = await queue.claim("fails", 1)
    await postpone(queue, later, 0.0)
    world.has("later", RunStatus.QUEUED, later.generation)
    world.dump = {key: await clients_dump(clients, key) for key in await world.keys()}
    return world


async def clients_dump(clients: RedisClients, key: str) -> bytes:
    """As it is: the ordinary client would decode it."""
    own: Any = clients.commands
    return cast(bytes, await own.execute_command("DUMP", key, NEVER_DECODE=True))


async def copy_of(world: World) -> World:
    """The same world, in the place of what is there."""
    if keys := await world.keys():
        await world.redis.delete(*keys)
    async with world.redis.pipeline(transaction=False) as pipeline:
        for key, dumped in world.dump.items():
            pipeline.restore(key, 0, dumped)
        await pipeline.execute()
    return World(world.clients, world.queue, world.database.copy(), list(world.alive), world.dump)


async def contradictions(world: World) -> list[str]:
    """Everything in the queue that does not fit together. Each structure against each job."""
    redis, keys = world.redis, world.clients.keys
    found: list[str] = []
    jobs = {name: await redis.hgetall(keys.job(name)) for name in [*world.database.rows, *world.database.over]}
    stand: list[tuple[str, str, str | None]] = [("scheduled", keys.scheduled, None), ("running", keys.leases, None)]
    for queue, of_queue in QUEUES.items():
        prefix = f"{keys.jobs}{of_queue}"
        stand += [("queued", f"{prefix}order", queue), ("parked", f"{prefix}parked", queue)]
    for state, name, of in stand:
        stands = set(await redis.zrange(name, 0, -1))
        wanted = {run for run, job in jobs.items() if job.get("state") == state and of in (None, _queue_of(job))}
        if stands != wanted:
            found.append(f"{name} has {sorted(stands)}, and {sorted(wanted)} are {state}")
    places: dict[str, set[str]] = {}
    parked: dict[str, set[str]] = {}
    for run, job in jobs.items():
        if run in world.database.rows and not job:
            found.append(f"{run} is not there")
        if job.get("state") in (None, "finished"):
            continue
        names = [f"user:{job['priority']}:{job['user']}", f"tier:{job['priority']}", f"resource:{job.get('resource')}"]
        for bit, name in enumerate(names):
            if int(job.get("places", 0)) >> bit & 1:
                places.setdefault(name, set()).add(run)
        if job["state"] == "parked":
            parked.setdefault(names[int(job["gate"]) - 1], set()).add(run)
        if job["state"] == "queued":
            score = float(await redis.zscore(f"{keys.jobs}{QUEUES[_queue_of(job)]}order", run))
            if score != float(job["score"]):
                found.append(f"{run} stands at {score} and has {job['score']}")
    waiting: dict[str, set[str]] = {}
    for run, job in jobs.items():
        if job.get("state") in ("queued", "parked"):
            waiting.setdefault(job["user"], set()).add(run)
    structures = (
        ("held", places, redis.smembers),
        ("parked", parked, _members(redis)),
        ("waiting", waiting, redis.smembers),
    )
    for kind, wanted_sets, read in structures:
        prefix = f"{keys.jobs}{kind}:"
        there = {key.removeprefix(prefix): set(await read(key)) for key in await world.keys() if key.startswith(prefix)}
        if there != wanted_sets:
            found.append(f"{kind} has {there}, and should have {wanted_sets}")
    if set(await redis.smembers(keys.gates)) != parked.keys():
        found.append(f"gates has {await redis.smembers(keys.gates)}, and runs are parked at {list(parked)}")
    for of_queue in QUEUES.values():
        order = await redis.zrange(f"{keys.jobs}{of_queue}order", 0, -1)
        for priority, name in keys.pending.items():
            name = name.replace("jobs:", f"jobs:{of_queue}")
            by_order = [run for run in order if int(jobs[run]["priority"]) == priority]
            if sorted(await redis.lrange(name, 0, -1)) != sorted(by_order):
                found.append(f"{name} has {await redis.lrange(name, 0, -1)}, and the order {by_order}")
    waiting_in = {_queue_of(job) for job in jobs.values() if job.get("state") in ("queued", "parked")}
    if not waiting_in - {DEFAULT_QUEUE} <= set(await redis.smembers(keys.queues)):
        found.append(f"queues has {await redis.smembers(keys.queues)}, and runs wait in {waiting_in}")
    heads = dict(await redis.zrange(f"{keys.jobs}heads", 0, -1, withscores=True))
    for queue in QUEUES.keys() - {DEFAULT_QUEUE}:
        first = await redis.zrange(f"{keys.jobs}{QUEUES[queue]}order", 0, 0, withscores=True)
        if first and heads.get(queue, float("inf")) > first[0][1]:
            found.append(f"heads has {heads}, and the first run of {queue} is {first[0]}")
    return found


def _queue_of(job: dict[str, str]) -> str:
    return job.get("queue", DEFAULT_QUEUE)


def _members(redis: Any) -> Callable[[str], Awaitable[list[str]]]:
    async def members(key: str) -> list[str]:
        return cast(list[str], await redis.zrange(key, 0, -1))

    return members


async def test_the_world_that_is_broken_here_is_whole_before(clients: RedisClients) -> None:
    world = await build(clients)
    assert await contradictions(world) == []
    assert not await world.reconcile()


@dataclass(frozen=True)
class Damage:
    """One thing that is lost: a key, or an entry of it."""

    key: str
    entry: str | None = None

    async def be_done(self, redis: Any) -> None:
        if self.entry is None:
            await redis.delete(self.key)
            return
        kind = await redis.type(self.key)
        remove = {"zset": redis.zrem, "set": redis.srem, "hash": redis.hdel}
        if kind == "list":
            await redis.lrem(self.key, 0, self.entry)
        elif kind in remove:
            await remove[kind](self.key, self.entry)


async def losses(world: World) -> list[Damage]:
    """Everything that can be lost: each key, and each of its entries."""
    redis, found = world.redis, []
    for key in await world.keys():
        found.append(Damage(key))
        match await redis.type(key):
            case "zset":
                entries = await redis.zrange(key, 0, -1)
            case "set":
                entries = await redis.smembers(key)
            case "list":
                entries = await redis.lrange(key, 0, -1)
            case "hash":
                entries = await redis.hkeys(key)
            case _:
                entries = []
        found += [Damage(key, entry) for entry in sorted(set(entries))]
    return found


async def mended_and_drained(world: World, reference: list[str], what: object) -> None:
    await world.reconcile()
    assert await contradictions(world) == [], what
    assert await world.drain() == reference, what
    assert world.database.rows == {}, what


@pytest.mark.parametrize("what", ["keys", pytest.param("entries", marks=pytest.mark.slow)])
async def test_each_key_and_each_entry_that_is_lost_is_mended_by_one_comparison(
    clients: RedisClients, what: str
) -> None:
    world = await build(clients)
    reference = await (await copy_of(world)).drain()
    assert len(reference) == 17
    for damage in [one for one in await losses(await copy_of(world)) if (one.entry is None) == (what == "keys")]:
        broken = await copy_of(world)
        await damage.be_done(broken.redis)
        await mended_and_drained(broken, reference, damage)


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_set_of_keys_and_entries_that_is_lost_is_mended_by_one_comparison(
    clients: RedisClients, seed: int
) -> None:
    chance = random.Random(seed)
    world = await build(clients)
    reference = await (await copy_of(world)).drain()
    broken = await copy_of(world)
    everything = await losses(broken)
    for damage in chance.sample(everything, chance.randint(2, len(everything))):
        await damage.be_done(broken.redis)
    await mended_and_drained(broken, reference, seed)


async def test_a_redis_that_was_emptied_has_every_run_again_after_one_comparison(clients: RedisClients) -> None:
    world = await build(clients)
    reference = await (await copy_of(world)).drain()
    broken = await copy_of(world)
    await broken.redis.delete(*await broken.keys())
    await mended_and_drained(broken, reference, "all of it")


async def surplus(world: World, chance: random.Random) -> str:
    """Something that does not belong where it is put; what it is."""
    redis, keys = world.redis, world.clients.keys
    run = chance.choice([*world.database.rows, *world.database.over, "never heard of"])
    kind = chance.choice(["zset", "zset", "zset", "gate", "held", "waiting", "list", "twice"])
    match kind:
        case "zset":
            tonight = [f"{keys.jobs}queue:nights:{part}" for part in ("order", "parked")]
            name = chance.choice([keys.order, keys.parked, keys.scheduled, *tonight])
            await redis.zadd(name, {run: chance.randint(0, 10**12)}, nx=True)
        case "gate":
            name = chance.choice(["user:1:greedy", "tier:0", "resource:gpu"])
            await redis.zadd(f"{keys.jobs}parked:{name}", {run: 1.0}, nx=True)
        case "held":
            name = chance.choice(["user:1:greedy", "tier:0", "resource:gpu"])
            await redis.sadd(f"{keys.jobs}held:{name}", run)
        case "waiting":
            name = chance.choice(["greedy", "modest"])
            await redis.sadd(f"{keys.jobs}waiting:{name}", run)
        case "list":
            name = chance.choice([*keys.pending.values(), f"{keys.jobs}queue:nights:pending"])
            await redis.lpush(name, run)
        case _:
            name = chance.choice(list(keys.pending.values()))
            if there := await redis.lindex(name, 0):
                await redis.lset(name, 0, await redis.lindex(name, -1) or there)
    return f"{run} in {name} ({kind})"


@pytest.mark.parametrize("seed", SEEDS)
async def test_entries_that_contradict_are_taken_out_by_one_comparison(clients: RedisClients, seed: int) -> None:
    chance = random.Random(seed)
    world = await build(clients)
    reference = await (await copy_of(world)).drain()
    broken = await copy_of(world)
    done = [await surplus(broken, chance) for _ in range(chance.randint(1, 12))]
    await mended_and_drained(broken, reference, (seed, done))


async def test_an_entry_too_many_is_found_beside_a_run_in_the_order_that_has_no_job(clients: RedisClients) -> None:
    """There are as many entries in the users' sets as runs that wait."""
    world = await build(clients)
    await clients.commands.zadd(clients.keys.order, {"never heard of": 1.0})
    await clients.commands.sadd(f"{clients.keys.jobs}waiting:modest", "is over")
    await world.reconcile()
    assert await contradictions(world) == []


@pytest.mark.parametrize(
    ("ended", "lost_from", "added_to"),
    [
        pytest.param("free 0", "waiting:free 0", "waiting:modest", id="in the set of a user"),
        pytest.param("greedy 4", "parked:user:1:greedy", "parked:resource:gpu", id="at a gate"),
    ],
)
async def test_an_entry_too_many_is_found_beside_a_job_of_a_run_that_is_over_and_lacks_one(
    clients: RedisClients, ended: str, lost_from: str, added_to: str
) -> None:
    world = await build(clients)
    world.database.end(ended)
    await Damage(f"{clients.keys.jobs}{lost_from}", ended).be_done(world.redis)
    if added_to.startswith("waiting"):
        await world.redis.sadd(f"{clients.keys.jobs}{added_to}", "is over")
    else:
        await world.redis.zadd(f"{clients.keys.jobs}{added_to}", {"is over": 1e15})
    await world.reconcile()
    assert await contradictions(world) == []


async def test_a_job_of_a_run_that_is_over_leaves_the_queue_and_lets_the_next_one_in(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=CAPS)
    world = World(clients, queue)
    for number in range(3):
        await world.add(f"run {number}", "greedy", NORMAL)
    world.database.over["run 0"] = RunStatus.CANCELLED
    del world.database.rows["run 0"]
    assert (await world.reconcile()).removed == 1
    assert await contradictions(world) == []
    assert [claim.run_id for claim in await queue.claim("worker", 10)] == ["run 1", "run 2"]


@pytest.mark.parametrize("may_sleep", [False, True], ids=["an ordinary run", "a run whose handler sleeps"])
async def test_a_lost_run_that_began_to_wait_in_the_future_waits_for_that_time_only_when_it_sleeps(
    clients: RedisClients, monkeypatch: pytest.MonkeyPatch, may_sleep: bool
) -> None:
    """The clock of the machine that queued an ordinary run goes ahead of the one that compares."""
    monkeypatch.setattr(reconciler, "PUSH_SECONDS", 0.0)
    queue = redis_queue(clients)
    in_ten_minutes = datetime.fromtimestamp(time.time() + 600, UTC)
    row = UnfinishedRun("run", "user", RunStatus.QUEUED, NORMAL, 0, None, in_ten_minutes, may_sleep=may_sleep)
    found = await Reconciler(cast(Runs, Database([row])), queue, lease_seconds=60.0).reconcile()
    assert found.queued == (0 if may_sleep else 1)


async def test_a_place_of_a_run_that_ended_is_free_after_one_comparison(clients: RedisClients) -> None:
    """Its worker was lost after it had stored the end, and Redis lost the lease."""
    queue = redis_queue(clients, caps=CAPS)
    world = World(clients, queue)
    for number in range(2):
        await world.add(f"run {number}", f"user {number}", HIGH, "gpu")
    [claim] = await queue.claim("worker", 1)
    world.database.end(claim.run_id)
    await clients.commands.delete(clients.keys.leases)
    assert await queue.claim("worker", 1) == []
    await world.reconcile()
    assert await contradictions(world) == []
    assert [one.run_id for one in await queue.claim("worker", 1)] == ["run 1"]


async def test_a_key_of_another_type_is_removed_and_its_runs_wait_where_they_stood(clients: RedisClients) -> None:
    world = await build(clients)
    reference = await (await copy_of(world)).drain()
    jobs, keys = clients.keys.jobs, clients.keys
    named = [f"{jobs}{name}" for name in ("heads", "queues", "queue:nights:order", "queue:nights:pending:high")]
    for name in (keys.order, keys.parked, keys.gates, keys.job("modest 0"), *named):
        broken = await copy_of(world)
        await broken.redis.set(name, "nonsense")
        await mended_and_drained(broken, reference, name)


async def test_a_run_that_moves_while_it_is_compared_is_left_as_it_is(clients: RedisClients) -> None:
    """The database was read before the claim, and the queue is asked after it."""
    queue = redis_queue(clients, caps=CAPS)
    world = World(clients, queue)
    await world.add("run", "user", NORMAL)
    [claim] = await queue.claim("worker", 1)
    assert not await world.reconcile()
    await finish(queue, claim)
    world.has("run", RunStatus.RUNNING, 1)
    assert not await Reconciler(cast(Runs, world.database), queue, lease_seconds=60.0).reconcile()
    assert await queue.claim("worker", 1) == []


async def test_a_comparison_beside_claims_settlements_and_new_runs_changes_nothing(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=CAPS)
    world = World(clients, queue)
    done: list[str] = []

    async def work(number: int) -> None:
        for count in range(15):
            await world.add(f"run {number} {count}", f"user {number % 2}", (LOW, NORMAL, HIGH)[number % 3], "")
            for claim in await queue.claim(f"worker {number}", 2):
                world.has(claim.run_id, RunStatus.RUNNING, claim.generation)
                done.append(claim.run_id)
                world.database.end(claim.run_id)
                await finish(queue, claim)

    async def compare() -> list[Reconciled]:
        reconciler = Reconciler(cast(Runs, world.database), queue, lease_seconds=60.0)
        return [await reconciler.reconcile() for _ in range(10)]

    comparing = asyncio.create_task(compare())
    await asyncio.gather(*(work(number) for number in range(4)))
    results = await comparing
    assert sum(found.queued for found in results) == 0
    done += await world.drain()
    assert sorted(done) == sorted({f"run {number} {count}" for number in range(4) for count in range(15)})
    assert await contradictions(world) == []
