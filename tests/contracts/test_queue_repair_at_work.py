"""A queue that is worked on while it is compared: what changes in between is no fault, and is not reported as one."""

import asyncio
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import cast

import pytest

from backplane.domain.runs import Ownership, Priority, RunStatus, UnfinishedRun
from backplane.queue import redis_repair
from backplane.queue.base import Caps, Claim, Compared, Job, Queue
from backplane.redis.client import RedisClients
from backplane.store.runs import Runs
from tests.queues import finish, hand_back, postpone, redis_queue
from worker.reconciler import Reconciled, Reconciler

CAPS = Caps(user={Priority.NORMAL: 3}, tier={Priority.LOW: 20}, resources={"gpu": 5})


class Work:
    """A database and a queue, and all that a platform does with them, in the order in which it does it."""

    def __init__(self, queue: Queue, seed: int) -> None:
        self.queue = queue
        self.chance = random.Random(seed)
        self.rows: dict[str, UnfinishedRun] = {}
        self.over: dict[str, RunStatus] = {}
        self.number = 0

    async def unfinished(self, *, after: str = "", limit: int = 500) -> list[UnfinishedRun]:
        found = [self.rows[run_id] for run_id in sorted(self.rows) if run_id > after][:limit]
        await asyncio.sleep(0)
        return found

    async def ownerships(self, run_ids: Iterable[str]) -> dict[str, Ownership]:
        found = {run_id: Ownership(row.status, row.generation) for run_id, row in self.rows.items()}
        found |= {run_id: Ownership(status, 1) for run_id, status in self.over.items()}
        return {run_id: found[run_id] for run_id in run_ids if run_id in found}

    async def start(self, count: int) -> None:
        rows = []
        for _ in range(count):
            self.number += 1
            priority = self.chance.choice(list(Priority))
            resource = "gpu" if self.chance.random() < 0.1 else None
            # Queued some seconds ago, so that nobody takes it for one that is on its way.
            queued_at = datetime.fromtimestamp(time.time() - 60, UTC)
            name, user = f"run-{self.number:06}", f"user {self.chance.randrange(8)}"
            rows.append(UnfinishedRun(name, user, RunStatus.QUEUED, priority, 0, resource, queued_at))
        jobs = [
            Job(row.id, row.user_id, row.priority, 0, row.resource or "", row.queued_at.timestamp()) for row in rows
        ]
        await self.queue.enqueue(jobs)
        self.rows |= {row.id: row for row in rows}

    def has(self, run_id: str, status: RunStatus, generation: int) -> None:
        row = self.rows[run_id]
        self.rows[run_id] = UnfinishedRun(
            row.id, row.user_id, status, row.priority, generation, row.resource, row.queued_at
        )

    async def carry_out(self, claim: Claim) -> None:
        run_id = claim.run_id
        if run_id not in self.rows:
            # It was cancelled a moment before it was taken.
            await finish(self.queue, claim)
            return
        self.has(run_id, RunStatus.RUNNING, claim.generation)
        match self.chance.randrange(5):
            case 0:
                self.has(run_id, RunStatus.QUEUED, claim.generation)
                await hand_back(self.queue, claim)
            case 1:
                self.has(run_id, RunStatus.QUEUED, claim.generation)
                await postpone(self.queue, claim, 0.01)
            case _:
                self.over[run_id] = RunStatus.COMPLETED
                del self.rows[run_id]
                await finish(self.queue, claim)

    async def cancel_one(self) -> None:
        queued = [row.id for row in self.rows.values() if row.status is RunStatus.QUEUED and row.generation == 0]
        if queued:
            run_id = self.chance.choice(queued)
            self.over[run_id] = RunStatus.CANCELLED
            del self.rows[run_id]
            await self.queue.forget(run_id)


async def work(of: Work, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await of.queue.reap(100)
        for claim in await of.queue.claim("worker", 5):
            await of.carry_out(claim)
        await of.start(5 if len(of.rows) < 1800 else 0)


async def cancel(of: Work, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await of.cancel_one()
        await asyncio.sleep(0.002)


async def test_a_place_in_a_line_that_is_worked_out_again_is_the_same_but_for_rounding(clients: RedisClients) -> None:
    queue = redis_queue(clients, caps=Caps(resources={"gpu": 1}))
    await queue.open("a database")
    since = [1795995198.896 + number * 0.000137 for number in range(200)]
    jobs = [Job(f"run-{at}-{priority}", "user", priority, 0, "gpu", at) for at in since for priority in Priority]
    await queue.enqueue(jobs)
    assert set(await queue.compare(jobs)) == {Compared.WHOLE}


@pytest.mark.parametrize("seed", [1, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8)]])
async def test_a_queue_that_is_worked_on_while_it_is_compared_is_reported_as_whole(
    clients: RedisClients, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_repair, "PAGE", 20)
    queue = redis_queue(clients, caps=CAPS)
    await queue.open("a database")
    of, stop = Work(queue, seed), asyncio.Event()
    await of.start(1800)
    tasks = [asyncio.create_task(work(of, stop)), asyncio.create_task(cancel(of, stop))]
    reconciler = Reconciler(cast(Runs, of), queue, lease_seconds=30)
    ends, passes = time.monotonic() + 1.0, list[Reconciled]()
    while len(passes) < 2 or time.monotonic() < ends:
        passes.append(await reconciler.reconcile())
    stop.set()
    await asyncio.gather(*tasks)
    assert len(of.over) > 50
    assert [one for one in passes if one] == []
