"""The heartbeat: shows that this process lives, renews its leases, and stops runs that it has lost or that are
cancelled.

It runs on the event loop that does the work: a process whose loop is blocked loses its leases, as it should. While
Redis is away no other worker can claim a run, so the work goes on; the database refuses each write with an old fencing
token.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from backplane.domain.runs import DEFAULT_QUEUE
from backplane.errors import Unavailable
from backplane.resources import Resources
from worker.consumer import ClaimedRun
from worker.run.interruption import Cause

log = structlog.get_logger()


class Heartbeat:
    """`running` is the consumer's own table of executions by run id; it changes while this runs. `leads`: whether this
    worker is the leader, which compares the database with Redis."""

    def __init__(
        self,
        resources: Resources,
        worker_id: str,
        slots: int,
        seconds: float,
        running: Mapping[str, ClaimedRun],
        *,
        queues: Sequence[str] = (DEFAULT_QUEUE,),
    ) -> None:
        self._resources = resources
        self._worker_id = worker_id
        self._slots = slots
        self._seconds = seconds
        self._running = running
        self._queues = queues
        self.leads = False

    async def run(self) -> None:
        while True:
            try:
                await self.beat()
            except Unavailable as error:
                self.leads = False
                log.warning("heartbeat failed", part=error.part, error=error.message)
            await asyncio.sleep(self._seconds)

    async def beat(self) -> None:
        """Renew every lease, then stop what may not go on, also while Redis is away. Raises Unavailable."""
        executions = dict(self._running)
        asked_at = time.monotonic()
        try:
            renewed = await self._resources.queue.renew(
                self._worker_id,
                self._slots,
                [execution.claim for execution in executions.values()],
                queues=self._queues,
            )
            self.leads = renewed.leads
            for run_id, execution in executions.items():
                if run_id in renewed.lost:
                    execution.interruption.set(Cause.SUPERSEDED)
                else:
                    execution.lease_renewed(asked_at)
        finally:
            generations = {run_id: execution.claim.generation for run_id, execution in executions.items()}
            if generations:
                await self._obey(executions, generations)

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
