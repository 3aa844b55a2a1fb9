"""The reaper: brings back what fell between the chairs. Every worker runs one; they do not get in each other's way.

It returns runs whose lease ended and attempts that are due (one script), and compares the database with Redis:
a run that is queued in the one and unknown to the other (Redis was emptied, the API died between commit and push) is
queued once more, which does nothing where another reaper was quicker. A run that is `running` and unknown to Redis has
a worker that will tell Redis of it at its next heartbeat; only when none does for a whole lease it is queued.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from backplane.errors import Unavailable
from backplane.queue.base import Job
from backplane.resources import Resources
from backplane.runs import Run, RunStatus
from backplane.tasks import run_together

log = structlog.get_logger()

REAP_SECONDS = 1.0
BATCH = 500
PUSH_SECONDS = 2.0
"""How long a run may be queued in the database before Redis has to know it: the API is between commit and push."""


class Reaper:
    """All times in seconds. `heartbeat_seconds`: after Redis was away, workers get so long to renew their leases."""

    def __init__(
        self, resources: Resources, *, lease_seconds: float, heartbeat_seconds: float, reconcile_seconds: float
    ) -> None:
        self._resources = resources
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._reconcile_seconds = reconcile_seconds
        self._missing_since: dict[str, float] = {}

    async def run(self) -> None:
        await run_together(reap=self._reap(), reconcile=self._reconcile())

    async def _reap(self) -> None:
        while True:
            try:
                reaped = await self._resources.queue.reap(BATCH)
            except Unavailable as error:
                log.warning("cannot look for lost runs", part=error.part, error=error.message)
                await asyncio.sleep(self._heartbeat_seconds)
                continue
            if reaped.lost:
                log.warning("workers were lost; their runs are queued again", runs=reaped.lost)
            if max(reaped.lost, reaped.due) < BATCH:
                await asyncio.sleep(REAP_SECONDS)

    async def _reconcile(self) -> None:
        while True:
            # Something is missing: look again as soon as it can no longer be on its way.
            await asyncio.sleep(PUSH_SECONDS if self._missing_since else self._reconcile_seconds)
            try:
                queued = await self.reconcile()
            except Unavailable as error:
                log.warning("cannot compare the database with Redis", part=error.part, error=error.message)
                continue
            if queued:
                log.warning("Redis did not know these runs; they are queued again", runs=queued)

    async def reconcile(self) -> int:
        """One pass over all unfinished runs. Answers how many were queued again. Raises Unavailable."""
        queued, cursor, missing = 0, "", dict[str, float]()
        while runs := await self._resources.store.runs.unfinished(after=cursor, limit=BATCH):
            cursor = runs[-1].id
            for run in await self._unknown(runs):
                since = missing[run.id] = self._missing_since.get(run.id, time.monotonic())
                grace = PUSH_SECONDS if run.status is RunStatus.QUEUED else self._lease_seconds
                if time.monotonic() - since >= grace:
                    job = Job(run.id, run.user_id, run.priority, run.generation)
                    queued += await self._resources.queue.enqueue(job)
        self._missing_since = missing
        return queued

    async def _unknown(self, runs: Sequence[Run]) -> list[Run]:
        known = await self._resources.queue.known([run.id for run in runs])
        return [run for run, is_known in zip(runs, known, strict=True) if not is_known]
