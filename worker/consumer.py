"""The consumer: claims as many runs as it has free slots, carries them out on one event loop, settles and drains.

With no free slot it does not claim; with nothing to claim it blocks on the wake-up list. The queues that it serves may
change while it blocks (the agents of a pool's process come and go): then it looks at the new ones at once. Runs that
have ended are settled in batches: those that ended while one call was under way go into the next one. When it drains,
it claims no more, lets running steps end within the grace period, and hands the other runs back before their next step.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from backplane.domain.runs import DEFAULT_QUEUE
from backplane.errors import Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import end
from backplane.queue.base import Claim, Queue, RunOutcome, Settlement
from worker.run.interruption import Cause, Interruption

log = structlog.get_logger()

GIVE_BACK_SECONDS = 10.0
"""After the grace period: how long handing a run back may take (a database write, a push)."""


class ClaimedRun(Protocol):
    """What the consumer knows of a run that is carried out. `run` returns what becomes of the claim, or None when
    another worker has the run."""

    claim: Claim
    interruption: Interruption

    def run(self) -> Coroutine[Any, Any, Settlement | None]: ...

    def lease_renewed(self, asked_at: float) -> None: ...


@dataclass(slots=True)
class Registration:
    """Under which id a worker claims runs, how many at once, and of which queues; these may change
    (`Consumer.serve`)."""

    worker_id: str
    slots: int
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)


class Consumer:
    """`running` maps run ids to claimed runs; it is changed here and read by the heartbeat. `wait_seconds`: how long
    one call for runs may block. `postponed` is called with the delay, in seconds, of each run that is postponed."""

    def __init__(
        self,
        queue: Queue,
        registration: Registration,
        execute: Callable[[Claim], ClaimedRun],
        *,
        running: dict[str, ClaimedRun],
        wait_seconds: float,
        postponed: Callable[[float], object],
    ) -> None:
        self.running = running
        self._queue = queue
        self._registration = registration
        self._worker_id = registration.worker_id
        self._slots = registration.slots
        self._serves_others = False
        self._waits = False
        self._execute = execute
        self._wait_seconds = wait_seconds
        self._postponed = postponed
        self._tasks: set[asyncio.Task[Settlement | None]] = set()
        self._claiming: asyncio.Task[int] | None = None
        self._draining = False
        self._freed = asyncio.Event()
        self._unsettled: list[Settlement] = []
        self._to_settle = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    async def run(self) -> None:
        """Claim runs until this is cancelled. Call `drain` afterwards."""
        waits = pauses()
        wait_seconds = 0.0
        while True:
            free = self._slots - len(self._tasks)
            if not free:
                self._freed.clear()
                await self._freed.wait()
                wait_seconds = 0.0
                continue
            # If this process is stopped when it is woken, one run is stuck with it, and not one for each free slot.
            limit = 1 if wait_seconds else free
            self._serves_others, self._waits = False, bool(wait_seconds)
            try:
                # A claim that is cut off may have taken runs that nobody would know of until their leases end.
                self._claiming = asyncio.create_task(self._claim(limit, wait_seconds), name="claim")
                claimed = await asyncio.shield(self._claiming)
                wait_seconds = 0.0 if claimed == limit or self._serves_others else self._wait_seconds
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("cannot claim runs", error=error.message, pause=round(pause, 1))
                await asyncio.sleep(pause)

    async def serve(self, queues: Sequence[str]) -> None:
        """Claim runs of these queues from now on. A claim that waits at others is ended."""
        self._registration.queues = tuple(queues)
        self._serves_others = True
        if self._waits and self._claiming is not None and not self._claiming.done():
            try:
                await self._queue.end_wait(self._worker_id)
            except Unavailable as error:
                log.warning("cannot end the wait for runs", error=error.message)

    async def settle(self) -> None:
        """Report to the queue what became of runs, until this is cancelled. It runs beside `run` and `drain`."""
        waits = pauses()
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            batch = self._unsettled[:]
            try:
                await self._queue.settle(batch)
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("cannot settle runs yet", error=error.message, runs=len(batch), pause=round(pause, 1))
                self._to_settle.set()
                await asyncio.sleep(pause)
                continue
            del self._unsettled[: len(batch)]
            for settlement in batch:
                if settlement.outcome in (RunOutcome.POSTPONED, RunOutcome.SET_ASIDE):
                    self._postponed(settlement.delay_seconds)
            if not self._unsettled:
                self._settled.set()

    async def _claim(self, limit: int, wait_seconds: float) -> int:
        asked_at = time.monotonic()
        claims = await self._queue.claim(self._worker_id, limit, wait_seconds, queues=self._registration.queues)
        for claim in claims:
            old = self.running.get(claim.run_id)
            if old and old.claim.generation >= claim.generation:
                self._add_settlement(Settlement(claim, RunOutcome.DISOWNED))
            elif self._draining:
                self._add_settlement(Settlement(claim, RunOutcome.HANDED_BACK))
            else:
                self._begin(claim, asked_at)
        return len(claims)

    def _begin(self, claim: Claim, asked_at: float) -> None:
        execution = self._execute(claim)
        execution.lease_renewed(asked_at)
        if old := self.running.get(claim.run_id):
            old.interruption.set(Cause.SUPERSEDED)
        self.running[claim.run_id] = execution
        task = asyncio.create_task(execution.run())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(done, execution))

    def _end(self, task: "asyncio.Task[Settlement | None]", execution: ClaimedRun) -> None:
        self._tasks.discard(task)
        if self.running.get(execution.claim.run_id) is execution:
            del self.running[execution.claim.run_id]
        self._freed.set()
        if task.cancelled():
            return
        if error := task.exception():
            log.error("an execution ended by a fault; its lease will end", run=execution.claim.run_id, exc_info=error)
        elif settlement := task.result():
            self._add_settlement(settlement)

    def _add_settlement(self, settlement: Settlement) -> None:
        self._unsettled.append(settlement)
        self._settled.clear()
        self._to_settle.set()

    async def drain(self, grace_seconds: float) -> None:
        """Wait for the running steps, then interrupt them. A run that cannot be handed back either is left until its
        lease ends."""
        self._draining = True
        await self._end_claim()
        for execution in self.running.values():
            execution.interruption.request_drain()
        log.info("draining", runs=len(self._tasks), grace_seconds=grace_seconds)
        await self._wait(grace_seconds)
        for execution in self.running.values():
            execution.interruption.set(Cause.DRAINED)
        await self._wait(GIVE_BACK_SECONDS)
        await end(*self._tasks)
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await self._settled.wait()

    async def _end_claim(self) -> None:
        if self._claiming is None or self._claiming.done():
            return
        try:
            await self._queue.end_wait(self._worker_id)
        except Unavailable as error:
            log.warning("cannot end the wait for runs", error=error.message)
        await asyncio.wait({self._claiming}, timeout=GIVE_BACK_SECONDS)
        await end(self._claiming)

    async def _wait(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
