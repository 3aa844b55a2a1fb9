"""Counts what users have stored, now and then: runs and events by the database, files by a walk over all workspaces.

The numbers go to Redis (`backplane.limits.storage`), where the API and workers look before they take more, and those of
all files together to the metrics. One controller counts at a time, by a lease that it keeps from count to count: a
count of files adds the difference to what was known when it began, so two at once would each add it. The lease is not
without exception (`backplane.leases`); a number that comes out wrong is mended by the next count.
"""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from contextlib import suppress

import structlog

from backplane.errors import Unavailable
from backplane.leases.redis import RedisLease
from backplane.limits.storage.base import Storage
from backplane.process.tasks import end
from backplane.store import UsageCounts
from backplane.workspace.base import WorkspaceStore, total
from controller.metrics import ControllerMetrics

LOOKS_A_LEASE = 3
REST = 10
"""The pause after a count is at least so many times as long as the count took."""

log = structlog.get_logger()


class Counting(ABC):
    """`run` counts now, and every so often, until it is cancelled; while another process has the lease, it waits."""

    def __init__(self, lease: RedisLease, period_seconds: float) -> None:
        self._lease = lease
        self._period = period_seconds
        self._due = 0.0

    async def run(self) -> None:
        try:
            while True:
                look_again = await self.take_turn()
                await asyncio.sleep(look_again)
        finally:
            with suppress(Unavailable):
                await self._lease.give_up()

    async def take_turn(self) -> float:
        """Count, if it is time and no other does. Answers after how many seconds to look again."""
        look_again = self._lease.seconds / LOOKS_A_LEASE * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
        redis_answers = True
        try:
            if not await self._lease.hold():
                self._another_counts()
                return look_again
        except Unavailable:
            redis_answers = False
        began = time.monotonic()
        if began >= self._due:
            await self._count_renewing(redis_answers)
            pause = pause_seconds(self._period, time.monotonic() - began)
            self._due = began + pause * random.uniform(1.0, 1.1)  # noqa: S311 - jitter
        return min(look_again, max(self._due - time.monotonic(), 0.0))

    async def _count_renewing(self, redis_answers: bool) -> None:
        renewing = asyncio.create_task(self._renew(), name="renew the lease of a count")
        try:
            await self._count(redis_answers)
        except Unavailable as error:
            log.warning("cannot count what users have stored", part=error.part, error=error.message)
        finally:
            await end(renewing)

    async def _renew(self) -> None:
        while not self._lease.is_over:
            await asyncio.sleep(self._lease.seconds / LOOKS_A_LEASE)
            with suppress(Unavailable):
                await self._lease.hold()

    async def _is_still_ours(self) -> bool:
        """Raises Unavailable."""
        if await self._lease.hold():
            return True
        log.info("a count is dropped, because another controller counts meanwhile")
        return False

    @abstractmethod
    async def _count(self, redis_answers: bool) -> None:
        """Raises Unavailable."""

    @abstractmethod
    def _another_counts(self) -> None: ...


class RowCounting(Counting):
    def __init__(self, lease: RedisLease, period_seconds: float, counts: UsageCounts, storage: Storage) -> None:
        super().__init__(lease, period_seconds)
        self._counts = counts
        self._storage = storage

    async def _count(self, redis_answers: bool) -> None:
        if not redis_answers:
            return
        counted = await self._counts.of_users()
        if await self._is_still_ours():
            await self._storage.count_rows(counted)

    def _another_counts(self) -> None:
        pass


class FileCounting(Counting):
    """Without Redis each controller measures, and only the metrics get the numbers."""

    def __init__(
        self,
        lease: RedisLease,
        period_seconds: float,
        workspaces: WorkspaceStore,
        storage: Storage,
        metrics: ControllerMetrics,
    ) -> None:
        super().__init__(lease, period_seconds)
        self._workspaces = workspaces
        self._storage = storage
        self._metrics = metrics

    async def _count(self, redis_answers: bool) -> None:
        before = None
        if redis_answers:
            with suppress(Unavailable):
                before = await self._storage.known()
        users = await self._workspaces.usage_by_user()
        self._metrics.workspaces_measured(total(users))
        if before is not None and await self._is_still_ours():
            await self._storage.count_files(before, {user_id: usage.bytes for user_id, usage in users.items()})

    def _another_counts(self) -> None:
        self._metrics.another_measures()


def pause_seconds(period: float, took: float) -> float:
    """From the begin of a count to that of the next."""
    return max(period, REST * took)
