"""Removes the Jobs that workers have left behind: of runs that are over, or that another worker carries out by now.

A worker removes its own Jobs. One that is killed cannot; its run is taken over by another worker, which may adopt the
Job by giving it its own generation. So a Job that nobody seems to need is only removed when it still seems so a lease
later, in the same hands. Finished Jobs stay for their time, so that they can be looked at.

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

from backplane.domain.runs import Hold
from backplane.domain.sandbox_labels import GENERATION, PART, POOL, RUN, SANDBOX, WORKER, label_value
from backplane.errors import PlatformError, Unavailable
from backplane.queue.base import Queue
from backplane.store import Runs
from controller.cluster import Cluster, connect_cluster

PAGE = 100
"""A Job holds the program that it runs, some 30 KB."""
DELETES_AT_ONCE = 10

log = structlog.get_logger()


Holder = tuple[str, str, int, str]
"""A Job, and whose it is: another one after it was adopted."""


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """A Job as it was listed. `run_id` is empty for one that is of no run yet, `finished_seconds` (ago) is None while
    it runs."""

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
    def holder(self) -> Holder:
        return self.uid, self.run_id, self.generation, self.worker


class Fate(Enum):
    STAYS = "stays"
    DOUBTFUL = "doubtful"
    """It goes if it is still so a lease later."""
    GOES = "goes"


@dataclass(frozen=True, slots=True)
class Known:
    """What the platform knows: the runs there are, and the live workers (None: nobody could say)."""

    holds: Mapping[str, Hold]
    workers: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `finished`: how long a Job stays after its end; `session`: how old one may become that is of no
    running run."""

    lease: float
    finished: float
    session: float


def fate(job: SandboxJob, known: Known, times: Times) -> Fate:
    """What is to become of a Job, by what is known at this moment."""
    if job.finished_seconds is not None:
        # Clusters before 1.23 do not do so themselves.
        return Fate.GOES if job.finished_seconds > times.finished else Fate.STAYS
    hold = known.holds.get(job.run_id)
    if hold and hold.is_of(job.generation):
        return Fate.STAYS
    if job.age_seconds > times.session:
        return Fate.GOES
    if job.is_warm and (known.workers is None or job.worker in known.workers):
        return Fate.STAYS
    return Fate.DOUBTFUL


Doubts = Mapping[Holder, float]
"""Since when (by any one clock) a Job has been doubtful in these hands."""


def judge(
    jobs: Iterable[SandboxJob], known: Known, times: Times, doubts: Doubts, now: float
) -> tuple[list[SandboxJob], Doubts]:
    """Which of the Jobs go now, and the doubts for the next time. A Job that came into other hands is
    doubted anew."""
    going, remaining = [], {}
    for job in jobs:
        what = fate(job, known, times)
        if what is Fate.DOUBTFUL:
            since = remaining[job.holder] = doubts.get(job.holder, now)
            # Twice at least, however short a lease is.
            if job.holder in doubts and now - since >= times.lease:
                what = Fate.GOES
        if what is Fate.GOES:
            going.append(job)
    return going, remaining


class SandboxJobCollector:
    """`collected` is told how many were removed. Times in seconds."""

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
                async with connect_cluster() as cluster:
                    while True:
                        await self.collect(cluster)
                        await self._pause()
            except PlatformError as error:
                log.warning("sandbox jobs are not collected", error=error.message)
                await self._pause()

    async def collect(self, cluster: Cluster) -> None:
        """One pass. Raises PlatformError when the cluster or the database does not answer."""
        jobs = await list_jobs(cluster, self._namespace)
        known = Known(
            await self._runs.holds({job.run_id for job in jobs if job.run_id}) if jobs else {},
            await self._live_workers() if any(job.is_warm for job in jobs) else frozenset(),
        )
        going, self._doubts = judge(jobs, known, self._times, self._doubts, time.monotonic())
        if count := await delete_jobs(cluster, self._namespace, going):
            self._collected(count)
            log.info("removed sandbox jobs that nobody needs", jobs=count, names=[job.name for job in going[:10]])

    async def _live_workers(self) -> frozenset[str] | None:
        try:
            return frozenset(label_value(worker.id) for worker in await self._queue.workers())
        except Unavailable as error:
            log.warning("cannot tell which workers live; warm sandbox jobs stay", error=error.message)
            return None

    async def _pause(self) -> None:
        # Several controllers that started together do not stay together.
        await asyncio.sleep(self._period_seconds * random.uniform(0.8, 1.0))  # noqa: S311 - jitter


async def list_jobs(cluster: Cluster, namespace: str) -> list[SandboxJob]:
    """All Jobs that are sandboxes, but for those that are being deleted. Raises Unavailable."""
    return [
        sandbox_job(item, datetime.now(UTC))
        async for item in cluster.jobs(namespace, f"{PART}={SANDBOX}", page=PAGE)
        if "deletionTimestamp" not in item["metadata"]
    ]


async def delete_jobs(cluster: Cluster, namespace: str, jobs: Iterable[SandboxJob]) -> int:
    """Delete these with their pods, and tell how many there were. One that has changed since it was listed stays, for
    it may have been adopted. Raises Unavailable; some may be deleted then."""
    some = asyncio.Semaphore(DELETES_AT_ONCE)

    async def delete(job: SandboxJob) -> bool:
        async with some:
            return await cluster.delete_job(namespace, job.name, uid=job.uid, version=job.version)

    ended = await asyncio.gather(*map(delete, jobs), return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            raise error
    return sum(map(bool, ended))


def sandbox_job(item: Mapping[str, Any], now: datetime) -> SandboxJob:
    """What counts of a Job, as the API server lists it."""
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
