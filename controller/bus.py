"""What the event bus needs beside its calls: events of runs, runs that are woken, and the end of old events.

An end of a run is a row (`store.bus.notices`), and so is a wait that has ended (`store.bus.waits`); any controller
takes them, and one that is killed in between loses none. New events are announced by Redis, which is not needed: a run
that is queued in the database and unknown to Redis is pushed by a worker.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from backplane.bus.base import Doorbell
from backplane.domain.bus import EventWait
from backplane.errors import PlatformError
from backplane.settings import fixed
from backplane.store import Store
from controller.batches import repeat_batches
from controller.metrics import ControllerMetrics

log = structlog.get_logger()

WakeRun = Callable[[EventWait], Awaitable[bool]]
"""Let the run go on that waited for this. Returns whether it was queued now. Raises Unavailable."""


class BusLoop:
    """`retention_days`: age of events at which they are removed; 0: never."""

    def __init__(
        self, store: Store, doorbell: Doorbell, wake: WakeRun, metrics: ControllerMetrics, *, retention_days: float
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._wake = wake
        self._metrics = metrics
        self._retention_days = retention_days

    async def run(self) -> None:
        await repeat_batches(self.work, what="the event bus", pause_seconds=fixed.BUS_POLL_SECONDS)

    async def work(self) -> bool:
        """One batch of each kind. Returns whether there may be more. Raises Unavailable."""
        batch = fixed.BUS_BATCH
        announced = await self._store.bus.publish_notices(batch)
        await self._doorbell.ring(announced)
        self._metrics.bus_events_made(sum(each.count for each in announced))
        timed_out = await self._store.event_waits.time_out(batch)
        ended = await self._store.event_waits.matched(batch, lease_seconds=fixed.BUS_WAKE_SECONDS)
        for wait in ended:
            if await self._wake(wait):
                self._metrics.run_woken()
        return bool(announced) or batch in (timed_out, len(ended))

    async def remove_old(self) -> None:
        """For as long as the controller runs."""
        while self._retention_days:
            before = datetime.now(UTC) - timedelta(days=self._retention_days)
            try:
                while removed := await self._store.bus.remove_before(before, fixed.RETENTION_BATCH):
                    self._metrics.bus_events_removed(removed)
                    await asyncio.sleep(fixed.RETENTION_PAUSE_SECONDS)
            except PlatformError as error:
                log.warning("retention is delayed", what="bus events", error=error.message)
            await asyncio.sleep(fixed.RETENTION_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
        await asyncio.Event().wait()
