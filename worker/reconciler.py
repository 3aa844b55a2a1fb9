"""The reconciler: compares the database, which knows what every run is, with the queue, and mends the queue.

Redis may be emptied, or lose any part of what it holds. So every run that is queued or running in the database is
looked up in each structure of the queue where it must stand, and every entry of the queue is looked up in the database:
a run that the queue has lost is queued again where it stood, and what is over is taken out. A run that the queue does
not know may be on its way (the API is between commit and push), so it is left alone for a moment. A run that is
`running` has a worker that writes it again at its next heartbeat, so it is left alone for the time of a lease. For how
long a run has been missing counts for one claim: what was missing while it was queued says nothing of the worker that
has taken it since.

It changes no run. Two at once do no harm: each step is one script, and a run is queued once, whoever asks for it.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from backplane.domain.runs import Ownership, RunStatus, UnfinishedRun
from backplane.queue.base import PUSH_SECONDS, Compared, Job, Queue
from backplane.store import Runs

BATCH = 500
_BELONG_IN_THE_QUEUE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING})

_Missing = tuple[str, RunStatus, int]
"""A run that the queue lacks, and the status and generation in which it lacks it."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many runs were `queued` again, entries of the queue `mended`, and jobs of runs that are over `removed`."""

    queued: int = 0
    mended: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.queued or self.mended or self.removed)


class Reconciler:
    """`lease_seconds`: how long the worker of a running run has to write it again."""

    def __init__(self, runs: Runs, queue: Queue, *, lease_seconds: float) -> None:
        self._runs = runs
        self._queue = queue
        self._lease_seconds = lease_seconds
        self._missing_since: dict[_Missing, float] = {}
        self._unwanted_since: dict[str, float] = {}

    @property
    def waits_for_some(self) -> bool:
        """Whether some runs are missing that may still be on their way, or are still there and about to be taken
        out."""
        return bool(self._missing_since or self._unwanted_since)

    def forget_missing(self) -> None:
        self._missing_since.clear()
        self._unwanted_since.clear()

    async def reconcile(self) -> Reconciled:
        """One pass over all unfinished runs and over the queue. Raises Unavailable."""
        mended, cursor, lost = 0, "", list[Job]()
        unfinished, users, missing = set[str](), set[str](), dict[_Missing, float]()
        while runs := await self._runs.unfinished(after=cursor, limit=BATCH):
            cursor = runs[-1].id
            unfinished.update(run.id for run in runs)
            users.update(run.user_id for run in runs)
            jobs = [_job_of(run) for run in runs]
            for run, job, compared in zip(runs, jobs, await self._queue.compare(jobs), strict=True):
                mended += compared is Compared.MENDED
                if compared in (Compared.MISSING, Compared.OVER):
                    key = (run.id, run.status, run.generation)
                    missing[key] = self._missing_since.get(key, time.monotonic())
                    if self._is_lost(run, compared, missing[key]):
                        lost.append(job)
        self._missing_since = missing
        queued = await self._queue_again(lost)
        swept = await self._queue.sweep(users)
        mended += swept.mended + swept.let_in
        removed = await self._remove((swept.waiting | swept.unleased) - unfinished)
        if removed:
            # Some sets are only counted (counts.lua), and a run that was removed may have hidden an entry too many.
            swept = await self._queue.sweep(users)
            mended += swept.mended + swept.let_in
        return Reconciled(queued, mended, removed)

    def _is_lost(self, run: UnfinishedRun, compared: Compared, missing_since: float) -> bool:
        """Whether the queue has lost the run, which is not merely on its way."""
        if run.status is RunStatus.QUEUED:
            waited = (datetime.now(UTC) - run.queued_at).total_seconds()
            if run.may_sleep and waited < 0:
                return False  # its handler sleeps; it is due later
            if compared is Compared.MISSING and waited >= PUSH_SECONDS:
                return True
            return time.monotonic() - missing_since >= PUSH_SECONDS
        return time.monotonic() - missing_since >= self._lease_seconds

    async def _queue_again(self, lost: Iterable[Job]) -> int:
        """Queue these again, but for those that were claimed, or are over, since the database was read."""
        jobs = {job.run_id: job for job in lost}
        ownerships = await self._ownerships(jobs)
        wanted = [
            job
            for run_id, job in jobs.items()
            if (owner := ownerships.get(run_id)) is not None
            and owner.status in _BELONG_IN_THE_QUEUE
            and owner.generation == job.generation
        ]
        # Caps let the first ones in, so they come in the order in which they have waited.
        wanted.sort(key=lambda job: job.since)
        return sum(await self._queue.enqueue(wanted)) if wanted else 0

    async def _remove(self, run_ids: Iterable[str]) -> int:
        """Take jobs out of the queue whose runs the database does not want there. Those that were queued since the pass
        began are found to be wanted. One that has just ended is left to whoever ended it, who takes it out himself."""
        asked = list(run_ids)
        ownerships = await self._ownerships(asked)
        now, removed, unwanted = time.monotonic(), 0, dict[str, float]()
        for run_id in asked:
            owner = ownerships.get(run_id)
            if owner and owner.status in _BELONG_IN_THE_QUEUE:
                continue
            since = self._unwanted_since.get(run_id, now)
            if now - since < min(PUSH_SECONDS, self._lease_seconds):
                unwanted[run_id] = since
                continue
            await self._queue.forget(run_id, owner.status if owner else None)
            removed += 1
        self._unwanted_since = unwanted
        return removed

    async def _ownerships(self, run_ids: Iterable[str]) -> dict[str, Ownership]:
        found, asked = dict[str, Ownership](), sorted(run_ids)
        for start in range(0, len(asked), BATCH):
            found |= await self._runs.ownerships(asked[start : start + BATCH])
        return found


def _job_of(run: UnfinishedRun) -> Job:
    return Job(
        run.id, run.user_id, run.priority, run.generation, run.resource or "", run.queued_at.timestamp(), run.queue
    )
