"""What a controller does for jobs: puts those that nobody carries out into RQ's queue, and removes what is too old.

The API puts a new job into the queue by itself. This is for what was lost on the way: Redis was away or was emptied,
a process was killed in the middle, a job waited for room. Any number of controllers may do so: RQ refuses a piece that
it has already, and a piece that comes twice finds the job claimed.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import structlog

from backplane.background.rq import RqQueue
from backplane.domain.background_jobs import BackgroundJob
from backplane.domain.stored import StorageQuota
from backplane.errors import PlatformError, Unavailable
from backplane.process.tasks import in_thread
from backplane.resources import Resources

LOOK_SECONDS = 5.0
AT_ONCE = 100
QUEUE_MOST = 1000
"""The most pieces that may wait in RQ's queue. While no process takes them, no more are put there."""
KEPT = timedelta(days=30)
"""How long the results of a job can be read after its end."""

log = structlog.get_logger()


class JobDispatch:
    """`queue` is None where RQ has no Redis that it can use: then only what is past its time is removed."""

    def __init__(
        self, resources: Resources, queue: RqQueue | None, report_due: Callable[[int], None] = lambda _: None
    ) -> None:
        self._resources = resources
        self._jobs = resources.store.background_jobs
        self._queue = queue
        self._report_due = report_due

    async def run(self) -> None:
        while True:
            # What is past its time goes also while Redis is away.
            for look in (self.put_due, self.remove_expired):
                try:
                    await look()
                except PlatformError as error:
                    log.warning("cannot look after jobs", error=error.message)
            await asyncio.sleep(LOOK_SECONDS)

    async def put_due(self) -> int:
        """How many were put into the queue. Raises Unavailable."""
        if self._queue is None:
            return 0
        queue, put = self._queue, 0
        due = await self._jobs.due(AT_ONCE, age_seconds=LOOK_SECONDS)
        self._report_due(len(due))
        for job_id, generation in due:
            if await in_thread(queue.waiting) >= QUEUE_MOST:
                break
            put += await in_thread(queue.put, job_id, generation)
        return put

    async def remove_expired(self) -> None:
        """Raises Unavailable."""
        for job in await self._jobs.expired(AT_ONCE):
            try:
                await self._remove_archive(job)
            except PlatformError as error:
                # One that cannot be removed keeps no other one.
                log.warning("cannot remove an export that is past its time", job=job.id, error=error.message)
        await self._jobs.forget(datetime.now(UTC) - KEPT, AT_ONCE)

    async def _remove_archive(self, job: BackgroundJob) -> None:
        await self._resources.workspaces.remove(job.user_id, job.id)
        with suppress(Unavailable):
            await self._resources.storage.grow(job.user_id, -int((job.result or {}).get("bytes", 0)), StorageQuota())
        await self._jobs.archive_removed(job.id)
        log.info("removed an export that is past its time", job=job.id)
