"""Removes what is past its time: in short transactions with a pause after each, so that nobody waits for it.

Of a run the files go first, then its events in batches, then its row with what is left. This process may end at any
moment: the next one finds the run by its row and goes on.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from backplane.domain.retention import Expired, LeasedRun, batches
from backplane.errors import PlatformError
from backplane.store import Retention as Store
from backplane.workspace.base import WorkspaceStore

LEASE_SECONDS = 600.0
ROWS_OF_A_RUN = 10
"""About how many rows are deleted with a run's row in one transaction: mostly its steps."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """Ages in days, from the end of a run or (`created_days`) from its creation. 0: never; for events and workspace,
    which never outlive their run: with the run."""

    runs_days: float
    created_days: float
    events_days: float
    workspace_days: float

    def due(self, now: datetime) -> dict[Expired, datetime]:
        """What is to be removed, and from before when."""
        days = {Expired.RUN: self.runs_days, Expired.UNSTARTED_RUN: self.created_days}
        for expired, limit in {Expired.FILES: self.workspace_days, Expired.EVENTS: self.events_days}.items():
            # Otherwise they go with the run, and a pass of their own would find nothing.
            if not self.runs_days or limit < self.runs_days:
                days[expired] = limit
        return {expired: now - timedelta(days=limit) for expired, limit in days.items() if limit}


class RetentionLoop:
    """`batch`: events that one transaction removes. Times in seconds."""

    def __init__(
        self,
        store: Store,
        workspaces: WorkspaceStore,
        limits: RetentionLimits,
        *,
        batch: int,
        pause_seconds: float,
        period_seconds: float,
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._limits = limits
        self._batch = batch
        self._pause_seconds = pause_seconds
        self._period_seconds = period_seconds

    async def run(self) -> None:
        while True:
            for expired, before in self._limits.due(datetime.now(UTC)).items():
                try:
                    await self.remove(expired, before)
                except PlatformError as error:
                    # Another controller, or this one later, goes on where the lease has ended.
                    log.warning("retention is delayed", what=expired.value, error=error.message)
            # Several controllers that started together do not stay together.
            await asyncio.sleep(self._period_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def remove(self, expired: Expired, before: datetime) -> None:
        """Remove all that was past its time then. Raises PlatformError; what was being removed stays leased."""
        remove: dict[Expired, Callable[[Sequence[LeasedRun], datetime], Awaitable[dict[str, int]]]] = {
            Expired.RUN: self._remove_runs,
            Expired.UNSTARTED_RUN: self._remove_runs,
            Expired.FILES: self._remove_files,
            Expired.EVENTS: self._trim_events,
        }
        size = max(1, self._batch // ROWS_OF_A_RUN)
        while leased := await self._store.lease(expired, before, size, seconds=LEASE_SECONDS):
            counts = await remove[expired](leased, before)
            log.info("removed what is past its time", what=expired.value, before=before.isoformat(), **counts)
            await self._pause()

    async def _remove_runs(self, leased: Sequence[LeasedRun], _before: datetime) -> dict[str, int]:
        await self._remove_workspaces(leased)
        deleted = await self._delete_events(leased)
        removed = await self._store.delete_runs([run.id for run in leased])
        return {"runs": removed, "events": deleted}

    async def _remove_files(self, leased: Sequence[LeasedRun], _before: datetime) -> dict[str, int]:
        await self._remove_workspaces(leased)
        await self._store.files_removed([run.id for run in leased])
        return {"workspaces": len(leased)}

    async def _trim_events(self, leased: Sequence[LeasedRun], before: datetime) -> dict[str, int]:
        deleted = await self._delete_events(leased)
        await self._store.events_trimmed([run.id for run in leased], before)
        return {"runs": len(leased), "events": deleted}

    async def _remove_workspaces(self, leased: Sequence[LeasedRun]) -> None:
        for run in leased:
            await self._workspaces.remove(run.user_id, run.id)

    async def _delete_events(self, leased: Sequence[LeasedRun]) -> int:
        deleted = 0
        for batch in batches(await self._store.spans([run.id for run in leased]), self._batch):
            deleted += await self._store.delete_events(batch)
            await self._pause()
        return deleted

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_seconds)
