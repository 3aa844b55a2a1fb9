"""How runs come to a worker and leave it, with executions that do what the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from backplane.domain.runs import DEFAULT_QUEUE, Priority, RunStatus
from backplane.process.tasks import end
from backplane.queue.base import Claim, Job, RunOutcome, Settlement, Whereabouts
from backplane.queue.redis import RedisQueue
from backplane.redis.client import RedisClients
from tests.queues import NO_CAPS, NO_LIMITS, redis_queue
from tests.servers import RedisServer
from tests.waiting import wait_until
from worker.consumer import ClaimedRun, Consumer, Registration
from worker.run.interruption import Interruption


class Carried:
    """A run that is carried out by `work`."""

    def __init__(self, claim: Claim, work: Callable[[], Awaitable[object]]) -> None:
        self.claim = claim
        self.interruption = Interruption()
        self._work = work

    async def run(self) -> Settlement | None:
        await self._work()
        return Settlement(self.claim, RunOutcome.FINISHED, RunStatus.COMPLETED, duration_seconds=1.0)

    def lease_renewed(self, asked_at: float) -> None:
        pass


@asynccontextmanager
async def consuming(
    queue: RedisQueue,
    work: Callable[[], Awaitable[object]],
    *,
    slots: int = 10,
    postponed: Callable[[float], object] = lambda _: None,
) -> AsyncIterator[Consumer]:
    running: dict[str, ClaimedRun] = {}
    consumer = Consumer(
        queue,
        Registration("worker", slots),
        lambda claim: Carried(claim, work),
        running=running,
        wait_seconds=5.0,
        postponed=postponed,
    )
    tasks = [asyncio.create_task(consumer.run()), asyncio.create_task(consumer.settle())]
    try:
        yield consumer
    finally:
        await end(tasks[0])
        await consumer.drain(0.0)
        await end(*tasks)


async def at_once() -> None:
    pass


def jobs(count: int) -> list[Job]:
    return [Job(f"run-{number}", "user-1", Priority.NORMAL) for number in range(count)]


async def until_all_are_over(queue: RedisQueue, count: int) -> None:
    async def over() -> bool:
        return len(await queue.finished()) == count

    await wait_until(over)


class Counted(RedisQueue):
    """Counts its calls."""

    settled: list[int]
    claimed: list[int]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settled, self.claimed = [], []

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self.settled.append(len(settlements))
        await super().settle(settlements)

    async def claim(
        self, worker_id: str, limit: int, wait_seconds: float = 0.0, *, queues: Sequence[str] = (DEFAULT_QUEUE,)
    ) -> list[Claim]:
        self.claimed.append(limit)
        return await super().claim(worker_id, limit, wait_seconds, queues=queues)


def counted(clients: RedisClients) -> Counted:
    return Counted(clients, lease_seconds=600, initial_run_seconds=60, ageing_seconds=300, caps=NO_CAPS, room=NO_LIMITS)


async def test_what_ends_together_is_settled_in_one_call(clients: RedisClients) -> None:
    queue, go = counted(clients), asyncio.Event()
    await queue.enqueue(jobs(50))
    async with consuming(queue, go.wait, slots=50) as consumer:
        await wait_until(lambda: len(consumer.running) == 50)
        go.set()
        await until_all_are_over(queue, 50)
    assert queue.settled == [50]


async def test_a_worker_without_a_free_slot_does_not_claim(clients: RedisClients) -> None:
    queue, go = counted(clients), asyncio.Event()
    await queue.enqueue(jobs(5))
    async with consuming(queue, go.wait, slots=2) as consumer:
        await wait_until(lambda: len(consumer.running) == 2)
        claims_before = list(queue.claimed)
        await queue.enqueue([Job("one more", "user-1", Priority.CRITICAL)])
        for _ in range(100):
            await asyncio.sleep(0)
        assert queue.claimed == claims_before
        go.set()
        await until_all_are_over(queue, 6)


async def test_a_worker_that_waits_asks_for_one_run_and_takes_the_others_at_once(clients: RedisClients) -> None:
    queue = counted(clients)
    async with consuming(queue, at_once, slots=10):

        async def waits() -> bool:
            return bool((await clients.commands.info("clients"))["blocked_clients"])

        await wait_until(waits)
        await queue.enqueue(jobs(8))
        await until_all_are_over(queue, 8)
    assert queue.claimed[1] == 1
    assert queue.claimed[2] > 1


async def test_a_run_that_ends_while_redis_is_away_is_settled_once_it_is_back(
    own_redis: Callable[..., RedisServer],
) -> None:
    server = own_redis(keeps_data=True)
    clients = RedisClients(server.url)
    queue, go = redis_queue(clients), asyncio.Event()
    await queue.enqueue(jobs(3))
    async with consuming(queue, go.wait) as consumer:
        await wait_until(lambda: len(consumer.running) == 3)
        server.stop()
        go.set()
        await wait_until(lambda: not consumer.running)
        server.start()
        await until_all_are_over(queue, 3)
    assert (await queue.statistics()).running == 0
    await clients.close()


async def test_the_run_of_an_execution_that_breaks_is_left_to_its_lease(clients: RedisClients) -> None:
    queue = redis_queue(clients)

    async def breaks() -> None:
        raise ZeroDivisionError

    await queue.enqueue(jobs(1))
    async with consuming(queue, breaks) as consumer:

        async def is_dropped() -> bool:
            return (await queue.statistics()).running == 1 and not consumer.running

        await wait_until(is_dropped)
    assert (await queue.statistics()).running == 1


async def test_a_draining_worker_settles_what_has_just_ended(clients: RedisClients) -> None:
    queue, go = redis_queue(clients), asyncio.Event()
    await queue.enqueue(jobs(20))
    async with consuming(queue, go.wait, slots=20) as consumer:
        await wait_until(lambda: len(consumer.running) == 20)
        go.set()
    assert (await queue.statistics()).running == 0


async def test_the_delay_of_each_run_that_is_put_off_is_reported(clients: RedisClients) -> None:
    queue, delays = redis_queue(clients), list[float]()

    class PutOff(Carried):
        async def run(self) -> Settlement | None:
            return Settlement(self.claim, RunOutcome.POSTPONED, delay_seconds=600)

    consumer = Consumer(
        queue,
        Registration("worker", 5),
        lambda claim: PutOff(claim, at_once),
        running={},
        wait_seconds=5.0,
        postponed=delays.append,
    )
    tasks = [asyncio.create_task(consumer.run()), asyncio.create_task(consumer.settle())]
    await queue.enqueue(jobs(2))
    await wait_until(lambda: len(delays) == 2)
    await end(tasks[0])
    await consumer.drain(0.0)
    await end(*tasks)
    assert delays == [600, 600]
    assert (await queue.statistics()).scheduled == 2


# --- queues that change ---


async def test_a_queue_that_is_served_from_now_on_is_looked_at_while_a_claim_waits(clients: RedisClients) -> None:
    """Far sooner than the five seconds for which a claim waits."""
    queue, began = redis_queue(clients), asyncio.get_running_loop().time()
    async with consuming(queue, at_once) as consumer:
        for number in range(3):
            name = f"agent:{number}"
            await queue.enqueue([Job(f"run-{number}", "user-1", Priority.NORMAL, queue=name)])
            await consumer.serve([name])
            await until_all_are_over(queue, number + 1)
    assert asyncio.get_running_loop().time() - began < 3.0


async def test_a_queue_that_is_served_no_more_keeps_its_runs(clients: RedisClients) -> None:
    queue = redis_queue(clients)
    async with consuming(queue, at_once) as consumer:
        await consumer.serve(["agent:1", "agent:2"])
        await consumer.serve(["agent:2"])
        await queue.enqueue(
            [Job(f"run-{number}", "user-1", Priority.NORMAL, queue=f"agent:{number}") for number in (1, 2)]
        )
        await until_all_are_over(queue, 1)
        assert await queue.whereabouts("run-1") is Whereabouts.WAITS
        await consumer.serve([])
        await consumer.serve(["agent:1"])
        await until_all_are_over(queue, 2)


async def test_a_worker_that_serves_nothing_ends_at_once(clients: RedisClients) -> None:
    async with asyncio.timeout(3.0), consuming(redis_queue(clients), at_once) as consumer:
        await consumer.serve([])
