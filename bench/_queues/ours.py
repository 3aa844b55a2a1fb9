"""The platform's queue with the worker's own consumer, and a run that does nothing: claim, lease, heartbeat, settle.

Jobs here are ids: what a run is lies in the database. So that a job weighs as much as the others' all the same, its
user's id is as long as it takes. BENCH_USERS and BENCH_CAP: how many users the jobs belong to in turns, and how many of
each may run at once (0: any number). BENCH_SLOTS: how many runs the worker holds at once; by default what drains
quickest, as the peers' settings are too.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence

import uvloop

from backplane.domain.runs import Priority, RunStatus
from backplane.queue.base import Caps, Claim, Job, QueueRoom, RunOutcome, Settlement
from backplane.queue.redis import RedisQueue
from backplane.redis.client import RedisClients
from bench._queues._program import JOB_BYTES, marks, nothing, produce, redis_url
from worker.consumer import ClaimedRun, Consumer, Registration
from worker.run.interruption import Interruption

USERS = int(os.environ.get("BENCH_USERS", "1"))
CAP = int(os.environ.get("BENCH_CAP", "0"))
SLOTS = int(os.environ.get("BENCH_SLOTS", "400"))
LEASE_SECONDS = 15.0
BEAT_SECONDS = 5.0
WORKER = "bench-worker"


def queue_on(clients: RedisClients, cap: int = CAP) -> RedisQueue:
    return RedisQueue(
        clients,
        lease_seconds=LEASE_SECONDS,
        initial_run_seconds=120.0,
        ageing_seconds=60.0,
        caps=Caps(user=dict.fromkeys(Priority, cap)),
        room=QueueRoom(),
    )


def job(number: int, users: int = USERS) -> Job:
    run_id, user_id = f"run-{number:032d}", f"user-{number % users:04d}-"
    return Job(run_id, user_id.ljust(JOB_BYTES - len(run_id), "x"), Priority.NORMAL)


class NoOp:
    """A run whose work is one mark. Leases are renewed for it as for any other."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.interruption = Interruption()
        self._began = time.monotonic()

    def lease_renewed(self, asked_at: float) -> None:
        """It ends long before its lease."""

    async def run(self) -> Settlement:
        MARKS.mark(int(self.claim.run_id[4:]))
        return Settlement(
            self.claim, RunOutcome.FINISHED, RunStatus.COMPLETED, duration_seconds=time.monotonic() - self._began
        )


async def work() -> None:
    clients = RedisClients(redis_url())
    queue = queue_on(clients)
    running: dict[str, ClaimedRun] = {}
    consumer = Consumer(
        queue,
        Registration(WORKER, SLOTS),
        NoOp,
        running=running,
        wait_seconds=BEAT_SECONDS,
        postponed=lambda _: None,
    )

    async def beat() -> None:
        while True:
            await queue.renew(WORKER, SLOTS, [execution.claim for execution in running.values()])
            await asyncio.sleep(BEAT_SECONDS)

    await asyncio.gather(beat(), consumer.run(), consumer.settle())


def main() -> None:
    if sys.argv[1] == "work":
        uvloop.run(work())
        return
    clients = RedisClients(redis_url())
    queue = queue_on(clients)

    async def one(number: int) -> None:
        await queue.enqueue([job(number)])

    async def batch(numbers: Sequence[int]) -> None:
        await queue.enqueue([job(number) for number in numbers])

    produce(one, batch, nothing, clients.close)


MARKS = marks()
if __name__ == "__main__":
    main()
