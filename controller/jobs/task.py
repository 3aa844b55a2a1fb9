"""What RQ carries out: one piece of one job, in an event loop of its own.

A piece claims its job, so that a task that RQ has twice is done once, does some of it, and gives the claim back. What
is left is the next piece's. Nothing is lost when a piece fails: the job's row says what is not done, and the controller
puts it into the queue again when the claim is over.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from backplane.background.rq import RqQueue
from backplane.domain.background_jobs import NO_ARCHIVE, BackgroundJob, JobStatus
from backplane.errors import PlatformError, Refused, Superseded, Unavailable
from backplane.process.tasks import end
from backplane.resources import Resources, connect, run_actions, storage_quota
from backplane.settings import Settings
from backplane.store import BackgroundJobs
from controller.jobs.bulk import BulkWork
from controller.jobs.export import Exporter

CLAIM_SECONDS = 60.0
RENEWALS_A_CLAIM = 3
AWAY_SECONDS = 10.0
"""After a part of the platform was away, until the next piece."""

log = structlog.get_logger()


def carrying_out(settings: Settings, queue: RqQueue) -> Callable[[str], None]:
    """The task, for RQ: it puts the next piece into the queue by itself."""

    def task(job_id: str) -> None:
        left = asyncio.run(carry_out(settings, job_id))
        if left is not None:
            with suppress(Unavailable):  # the controller does it a little later
                queue.put(job_id, left)

    return task


async def carry_out(settings: Settings, job_id: str) -> int | None:
    """One piece of a job. The generation of the claim that it had, when more can be done at once; else None."""
    async with connect(settings) as resources:
        jobs = resources.store.background_jobs
        job = await jobs.claim(job_id, seconds=CLAIM_SECONDS)
        if job is None:
            return None
        renewing = asyncio.create_task(_renew(resources, job), name="renew the claim of a job")
        try:
            return await _piece(settings, resources, job)
        except Superseded as error:
            log.info("a job is left to others", job=job.id, reason=error.message)
            return None
        except Refused as error:
            log.warning("a job failed", job=job.id, error=error.message)
            await _fail(jobs, job, error.message)
            return None
        except PlatformError as error:
            log.warning("a job waits for a part of the platform", job=job.id, error=error.message)
            with suppress(PlatformError):
                await jobs.release(job, after_seconds=AWAY_SECONDS)
            return None
        except Exception:
            # A fault would come again with the next piece, and the job would never end.
            log.exception("a job failed by a fault of the platform", job=job.id)
            await _fail(jobs, job, "a fault of the platform; the log of controller.jobs has the details")
            return None
        finally:
            await end(renewing)


async def _fail(jobs: BackgroundJobs, job: BackgroundJob, error: str) -> None:
    """Of an export an archive may lie in the store, made by a piece that was cut off: it is removed."""
    if job.kind == "export":
        await jobs.finish(job, JobStatus.FAILED, error=error, result=NO_ARCHIVE, kept_seconds=0.0)
    else:
        await jobs.finish(job, JobStatus.FAILED, error=error)


async def _piece(settings: Settings, resources: Resources, job: BackgroundJob) -> int | None:
    if job.kind == "export":
        exporter = Exporter(
            resources,
            most_bytes=settings.export_max_bytes,
            kept_seconds=settings.export_keep_seconds,
            quota=storage_quota(settings),
        )
        await exporter.carry_out(job)
        return None
    return await BulkWork(resources, run_actions(settings, resources)).carry_out(job)


async def _renew(resources: Resources, job: BackgroundJob) -> None:
    while True:
        await asyncio.sleep(CLAIM_SECONDS / RENEWALS_A_CLAIM)
        with suppress(PlatformError):  # whoever carries it out learns it by the next write
            await resources.store.background_jobs.renew(job, seconds=CLAIM_SECONDS)
