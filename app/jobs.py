"""Puts a new bulk action or export into RQ's queue, when its row is committed, and reads pages of a user's.

Where that fails, nothing is lost: a controller looks for rows that nobody carries out, every few seconds.
"""

import structlog

from backplane.domain.background_jobs import BackgroundJob, JobKind
from backplane.domain.users import User
from backplane.errors import Conflict, PlatformError
from backplane.process.tasks import in_thread
from backplane.redis_access import rq_is_possible, rq_is_reached
from backplane.settings import Settings
from backplane.store import BackgroundJobs

log = structlog.get_logger()


async def page_of_jobs(
    jobs: BackgroundJobs, user: User, kind: JobKind, before: str | None, limit: int
) -> tuple[list[BackgroundJob], str | None]:
    """What a user has asked for, newest first, and the cursor of the next page; None on the last one."""
    found = await jobs.page(user.id, kind, before=before, limit=limit + 1)
    return found[:limit], found[limit - 1].id if len(found) > limit else None


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
        if not rq_is_reached(self._settings):
            return  # a controller finds the row
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
