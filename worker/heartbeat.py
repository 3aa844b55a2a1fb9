"""The heartbeat: shows that this process lives, renews its leases, and stops runs that it has lost or that are
cancelled.

It runs on the event loop that does the work; while that loop is blocked, `worker.lease_keeper` renews the leases. While
Redis is away no other worker can claim a run, so the work goes on; the database refuses each write with an old fencing
token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from backplane.errors import Unavailable
from backplane.process.tasks import run_together
from backplane.resources import Resources
from worker.consumer import ClaimedRun, Registration
from worker.run.interruption import Cause

log = structlog.get_logger()


class Heartbeat:
    """`running` is the consumer's own table of executions by run id; it changes while this runs. `leads`: whether this
    worker is the leader, which compares the database with Redis."""

    def __init__(
        self, resources: Resources, registration: Registration, seconds: float, running: Mapping[str, ClaimedRun]
    ) -> None:
        self._resources = resources
        self._registration = registration
        self._seconds = seconds
        self._running = running
        self.leads = False

    async def run(self) -> None:
        """Two loops, because a database that hangs must not end a lease in Redis."""
        await run_together(renew=self._repeat(self._renew), look_at_rights=self._repeat(self._look_at_rights))

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Unavailable as error:
                log.warning("heartbeat failed", part=error.part, error=error.message)
            await asyncio.sleep(self._seconds)

    async def _renew(self) -> None:
        """Renew every lease, and stop the runs that are not this worker's any more. Raises Unavailable."""
        executions = dict(self._running)
        asked_at, own = time.monotonic(), self._registration
        try:
            renewed = await self._resources.queue.renew(
                own.worker_id, own.slots, [execution.claim for execution in executions.values()], queues=own.queues
            )
        except Unavailable:
            self.leads = False
            raise
        self.leads = renewed.leads
        for run_id, execution in executions.items():
            if run_id in renewed.lost:
                execution.interruption.set(Cause.SUPERSEDED)
            else:
                execution.lease_renewed(asked_at)

    async def _look_at_rights(self) -> None:
        """Stop what may not go on, also while Redis is away. Raises Unavailable."""
        if executions := dict(self._running):
            await self._obey(
                executions, {run_id: execution.claim.generation for run_id, execution in executions.items()}
            )

    async def listen_for_cancels(self) -> None:
        """Obey cancels as they are announced. The next beat finds those that were missed here."""
        async with self._resources.queue.cancels() as announced:
            async for run_id in announced:
                if execution := self._running.get(run_id):
                    try:
                        await self._obey({run_id: execution}, {run_id: execution.claim.generation})
                    except Unavailable as error:
                        log.warning("cancel waits for the next heartbeat", run=run_id, error=error.message)

    async def _obey(self, executions: Mapping[str, ClaimedRun], generations: Mapping[str, int]) -> None:
        rights = await self._resources.store.running_runs.rights(generations)
        for run_id in rights.cancelled:
            executions[run_id].interruption.set(Cause.CANCELLED)
        for run_id in rights.superseded:
            executions[run_id].interruption.set(Cause.SUPERSEDED)
