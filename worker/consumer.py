"""The consumer: claims as many runs as it has free slots, carries them out on one event loop, and drains.

With no free slot it does not claim; with nothing to claim it blocks on the doorbell. Draining: it claims no more, lets
each step in hand end within the grace period, and hands the other runs back at the step boundary.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from backplane.errors import Unavailable
from backplane.patience import pauses
from backplane.queue.base import Claim, Queue
from backplane.tasks import end
from worker.execution import Execution
from worker.interruption import Cause

log = structlog.get_logger()

WAIT_SECONDS = 5.0
GIVE_BACK_SECONDS = 10.0
"""After the grace period: how long handing a run back may take (a database write, a push)."""


class Consumer:
    """`held` maps run ids to the executions under way: the heartbeat reads it."""

    def __init__(self, queue: Queue, worker_id: str, slots: int, execute: Callable[[Claim], Execution]) -> None:
        self.held: dict[str, Execution] = {}
        self._queue = queue
        self._worker_id = worker_id
        self._slots = slots
        self._execute = execute
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming: asyncio.Task[int] | None = None
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; then `drain`."""
        waits = pauses()
        while True:
            free = self._slots - len(self._tasks)
            if not free:
                self._freed.clear()
                await self._freed.wait()
                continue
            try:
                # A claim that is cut off may have taken runs that nobody would know of until their leases end.
                self._claiming = asyncio.create_task(self._claim(free), name="claim")
                if await asyncio.shield(self._claiming) < free:
                    await self._queue.wait(WAIT_SECONDS)
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("cannot claim runs", error=error.message, pause=round(pause, 1))
                await asyncio.sleep(pause)

    async def _claim(self, free: int) -> int:
        asked_at = time.monotonic()
        claims = await self._queue.claim(self._worker_id, free)
        for claim in claims:
            self._begin(claim, asked_at)
        return len(claims)

    def _begin(self, claim: Claim, asked_at: float) -> None:
        execution = self._execute(claim)
        execution.lease_renewed(asked_at)
        if old := self.held.get(claim.run_id):
            old.interruption.set(Cause.SUPERSEDED)
        self.held[claim.run_id] = execution
        task = asyncio.create_task(execution.run(), name=f"run {claim.run_id}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(done, execution))

    def _end(self, task: asyncio.Task[None], execution: Execution) -> None:
        self._tasks.discard(task)
        if self.held.get(execution.claim.run_id) is execution:
            del self.held[execution.claim.run_id]
        self._freed.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("an execution ended by a fault; its lease will end", run=execution.claim.run_id, exc_info=error)

    async def drain(self, grace_seconds: float) -> None:
        """Wait for the steps in hand, then interrupt them; what cannot even be handed back is left to its lease."""
        if self._claiming:
            await asyncio.wait({self._claiming})
        for execution in self.held.values():
            execution.interruption.leave()
        log.info("draining", runs=len(self._tasks), grace_seconds=grace_seconds)
        await self._wait(grace_seconds)
        for execution in self.held.values():
            execution.interruption.set(Cause.DRAINED)
        await self._wait(GIVE_BACK_SECONDS)
        await end(*self._tasks)

    async def _wait(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
