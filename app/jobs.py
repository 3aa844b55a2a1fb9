"""Puts a new bulk action or export into RQ's queue, when its row is committed.

Where that fails, nothing is lost: a controller looks for rows that nobody carries out, every few seconds.
"""

import structlog

from backplane.errors import Conflict, PlatformError
from backplane.process.tasks import in_thread
from backplane.redis_access import rq_is_possible
from backplane.settings import Settings

log = structlog.get_logger()


class JobQueue:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_possible(self) -> None:
        """Raises Conflict where no process can carry jobs out."""
        if not rq_is_possible(self._settings):
            raise Conflict(
                "this platform carries out no bulk actions and no exports: its Redis is a cluster, which RQ cannot "
                "use; whoever runs it sets JOBS_REDIS_URL to a single server"
            )

    async def put(self, job_id: str) -> None:
        try:
            await in_thread(self._put, job_id)
        except PlatformError as error:
            log.warning("accepted, but not put into the queue; a controller will", job=job_id, error=error.message)

    def _put(self, job_id: str) -> None:
        # RQ costs a process some 60 ms and 6 MiB, and most API processes are never asked for a job.
        from backplane.background_access import connect_background_queue  # noqa: PLC0415

        queue = connect_background_queue(self._settings)
        try:
            queue.put(job_id, 0)
        finally:
            queue.close()
