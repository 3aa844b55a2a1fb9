"""Removes the Jobs that workers have left behind: of runs that are over, or that another worker carries out by now.

A worker removes its own Jobs. A worker that is killed cannot; another worker takes its run over, and may adopt the Job
by giving it its own generation. So a Job that seems not to be needed is only removed when it still seems so a lease
later, with the same owner. Finished Jobs stay for their time, so that they can be looked at.

Any number of controllers may do this at once. None keeps anything but what it has seen itself.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import structlog

from backplane.domain.runs import Ownership
from backplane.domain.sandbox_labels import GENERATION, PART, POOL, RUN, SANDBOX, WORKER, label_value
from backplane.errors import PlatformError, Unavailable
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.queue.base import Queue
from backplane.store import Runs
from controller.cleanup.sessions import Leftover, SessionPlace

PAGE = 100
"""A Job holds the program that it runs, some 30 KB."""
DELETES_AT_ONCE = 10
_GONE_OR_CHANGED = (404, 409)

log = structlog.get_logger()


Owner = tuple[str, str, int, str]
"""A Job with its run, generation and worker: these change when it is adopted."""


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """A Job as it was listed. `run_id` is empty while it belongs to no run, `finished_seconds` (ago) is None while it
    runs."""

    name: str
    uid: str
    version: str
    run_id: str
    generation: int
    worker: str
    is_warm: bool
    age_seconds: float
    finished_seconds: float | None = None

    @property
    def owner(self) -> Owner:
        return self.uid, self.run_id, self.generation, self.worker


class Fate(Enum):
    STAYS = "stays"
    DOUBTFUL = "doubtful"
    """It goes if nothing has changed a lease later."""
    GOES = "goes"


@dataclass(frozen=True, slots=True)
class PlatformState:
    """What the platform knows: the runs there are, and the live workers (None: the queue did not answer)."""

    ownerships: Mapping[str, Ownership]
    workers: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `finished`: how long a Job stays after its end; `session`: how old a Job may become that belongs to
    no running run."""

    lease: float
    finished: float
    session: float


def fate(job: SandboxJob, known: PlatformState, times: Times) -> Fate:
    """What happens to a Job, by what is known at this moment."""
    if job.finished_seconds is not None:
        # Clusters before 1.23 do not do so themselves.
        return Fate.GOES if job.finished_seconds > times.finished else Fate.STAYS
    owner = known.ownerships.get(job.run_id)
    if owner and owner.is_of(job.generation):
        return Fate.STAYS
    if job.age_seconds > times.session:
        return Fate.GOES
    if job.is_warm and (known.workers is None or job.worker in known.workers):
        return Fate.STAYS
    return Fate.DOUBTFUL


Doubts = Mapping[Owner, float]
"""Since when (by any one clock) a Job has been doubtful with this owner."""


def judge(
    jobs: Iterable[SandboxJob], known: PlatformState, times: Times, doubts: Doubts, now: float
) -> tuple[list[SandboxJob], Doubts]:
    """Which of the Jobs go now, and the doubts for the next pass. For a Job with a new owner the time begins anew."""
    going, remaining = [], {}
    for job in jobs:
        what = fate(job, known, times)
        if what is Fate.DOUBTFUL:
            since = remaining[job.owner] = doubts.get(job.owner, now)
            # A Job is judged twice at least, however short a lease is.
            if job.owner in doubts and now - since >= times.lease:
                what = Fate.GOES
        if what is Fate.GOES:
            going.append(job)
    return going, remaining


class SandboxJobCollector:
    """`collected` is called with the number of Jobs that were removed. Times in seconds."""

    def __init__(
        self,
        runs: Runs,
        queue: Queue,
        namespace: str,
        times: Times,
        *,
        period_seconds: float,
        collected: Callable[[int], None],
    ) -> None:
        self._runs = runs
        self._queue = queue
        self._namespace = namespace
        self._times = times
        self._period_seconds = period_seconds
        self._collected = collected
        self._doubts: Doubts = {}

    async def run(self) -> None:
        while True:
            try:
                async with open_api_server() as api:
                    while True:
                        await self.collect(api)
                        await self._pause()
            except PlatformError as error:
                log.warning("sandbox jobs are not collected", error=error.message)
                await self._pause()

    async def collect(self, api: ApiServer) -> None:
        """One pass. Raises PlatformError when the cluster or the database does not answer."""
        jobs = await list_jobs(api, self._namespace)
        known = PlatformState(
            await self._runs.ownerships({job.run_id for job in jobs if job.run_id}) if jobs else {},
            await self._live_workers() if any(job.is_warm for job in jobs) else frozenset(),
        )
        going, self._doubts = judge(jobs, known, self._times, self._doubts, time.monotonic())
        if count := await delete_jobs(api, self._namespace, going):
            self._collected(count)
            log.info("removed sandbox jobs that nobody needs", jobs=count, names=[job.name for job in going[:10]])

    async def _live_workers(self) -> frozenset[str] | None:
        try:
            return frozenset(label_value(worker.id) for worker in await self._queue.workers())
        except Unavailable as error:
            log.warning("cannot see which workers live; warm sandbox jobs stay", error=error.message)
            return None

    async def _pause(self) -> None:
        # Several controllers that started together do not stay together.
        await asyncio.sleep(self._period_seconds * random.uniform(0.8, 1.0))  # noqa: S311 - jitter


async def list_jobs(api: ApiServer, namespace: str) -> list[SandboxJob]:
    """All Jobs that are sandboxes, but for those that are being deleted. Raises Unavailable."""
    pages = api.pages(_path(namespace), [("labelSelector", f"{PART}={SANDBOX}")], page=PAGE)
    try:
        return [
            sandbox_job(item, datetime.now(UTC)) async for item in pages if "deletionTimestamp" not in item["metadata"]
        ]
    except ApiRefused as refused:
        raise refused.unavailable(f"list jobs in {namespace}") from None


async def delete_jobs(api: ApiServer, namespace: str, jobs: Iterable[SandboxJob]) -> int:
    """Delete these with their pods; the answer is how many were deleted. A Job that has changed since it was listed
    stays, for it may have been adopted. Raises Unavailable; some may be deleted then."""
    some = asyncio.Semaphore(DELETES_AT_ONCE)

    async def delete(job: SandboxJob) -> bool:
        async with some:
            return await _delete(api, namespace, job)

    ended = await asyncio.gather(*map(delete, jobs), return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            raise error
    return sum(map(bool, ended))


async def _delete(api: ApiServer, namespace: str, job: SandboxJob) -> bool:
    body = {
        "propagationPolicy": "Foreground",
        "preconditions": {"uid": job.uid, "resourceVersion": job.version},
    }
    try:
        await api.call("DELETE", f"{_path(namespace)}/{job.name}", body=body)
    except ApiRefused as refused:
        if refused.status in _GONE_OR_CHANGED:
            return False
        raise refused.unavailable(f"delete jobs in {namespace}") from None
    return True


def _path(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def sandbox_job(item: Mapping[str, Any], now: datetime) -> SandboxJob:
    """What matters of a Job, from its JSON."""
    metadata = item["metadata"]
    labels: Mapping[str, str] = metadata.get("labels", {})
    created = datetime.fromisoformat(metadata["creationTimestamp"])
    ended = [
        datetime.fromisoformat(condition.get("lastTransitionTime") or metadata["creationTimestamp"])
        for condition in item.get("status", {}).get("conditions", ())
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
    ]
    generation, run_id = labels.get(GENERATION, ""), labels.get(RUN, "")
    return SandboxJob(
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        run_id=run_id,
        generation=int(generation) if generation.isdecimal() else 0,
        worker=labels.get(WORKER, ""),
        is_warm=labels.get(POOL) == "warm" and not run_id,
        age_seconds=(now - created).total_seconds(),
        finished_seconds=(now - max(ended)).total_seconds() if ended else None,
    )


class JobPlace(SessionPlace):
    """The sandboxes of a cluster."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    async def find(self) -> list[Leftover]:
        async with open_api_server() as api:
            jobs = await list_jobs(api, self._namespace)
        return [_job_left(job) for job in jobs]

    async def remove(self, leftover: Leftover) -> bool:
        async with open_api_server() as api:
            jobs = await list_jobs(api, self._namespace)
            return bool(await delete_jobs(api, self._namespace, [job for job in jobs if _job_left(job) == leftover]))


def _job_left(job: SandboxJob) -> Leftover:
    return Leftover("job", job.name, f"{job.uid} {job.worker}", job.run_id, job.generation, job.age_seconds)
