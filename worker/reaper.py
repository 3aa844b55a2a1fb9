"""The reaper: queues runs again whose worker was lost, and attempts whose pause is over.

Every worker returns runs whose lease ended and attempts that are due (one script; they do not get in each other's way).
One of them, the leader, lets the reconciler compare the database with Redis as well. Two leaders, for the moment in
which Redis was emptied, do no harm.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from backplane.errors import Unavailable
from backplane.process.tasks import run_together
from backplane.queue.base import PUSH_SECONDS
from backplane.resources import Resources
from worker.reconciler import Reconciler

log = structlog.get_logger()

REAP_SECONDS = 5.0
"""The longest time between two looks. A postponed run that is known is looked for when it is due."""
SHORTEST_PAUSE_SECONDS = 0.01
BATCH = 500
MIRROR_SECONDS = 60.0


class Reaper:
    """All times are in seconds. `heartbeat_seconds`: how long workers have to renew their leases after Redis was away.
    `leads` returns whether this worker is the leader now. `lost` is called with the number of leases that have ended,
    when some have."""

    def __init__(
        self,
        resources: Resources,
        *,
        lease_seconds: float,
        heartbeat_seconds: float,
        reconcile_seconds: float,
        leads: Callable[[], bool],
        lost: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._resources = resources
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._reconcile_seconds = reconcile_seconds
        self._leads = leads
        self._lost = lost
        self._look = asyncio.Event()
        self._reconciler = Reconciler(resources.store.runs, resources.queue, lease_seconds=lease_seconds)
        self._mirrored_at = float("-inf")

    async def run(self) -> None:
        await run_together(reap=self._reap(), reconcile=self._reconcile())

    def expect(self, delay_seconds: float) -> None:
        """This worker has just postponed a run for so long."""
        asyncio.get_running_loop().call_later(delay_seconds, self._look.set)

    async def _reap(self) -> None:
        while True:
            self._look.clear()
            try:
                reaped = await self._resources.queue.reap(BATCH)
            except Unavailable as error:
                log.warning("cannot look for lost runs", part=error.part, error=error.message)
                await asyncio.sleep(self._heartbeat_seconds)
                continue
            if reaped.lost:
                self._lost(reaped.lost)
                for one in reaped.losses:
                    lost = one.worker_id or "unknown"
                    log.warning("run lost: it is queued again", run=one.run_id, lost_worker=lost, crashes=one.crashes)
            if max(reaped.lost, reaped.due, reaped.let_in) >= BATCH:
                continue
            # A run that is claimed a moment from now has a lease that this process does not know yet.
            pause = min(REAP_SECONDS, self._lease_seconds)
            if reaped.next_seconds is not None:
                pause = min(pause, reaped.next_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(pause, SHORTEST_PAUSE_SECONDS)):
                    await self._look.wait()

    async def _reconcile(self) -> None:
        while True:
            # Something is missing: look again as soon as it can no longer be on its way.
            pause = self._reconcile_seconds
            await asyncio.sleep(min(PUSH_SECONDS, pause) if self._reconciler.waits_for_some else pause)
            if not self._leads():
                self._reconciler.forget_missing()
                continue
            try:
                found = await self._reconciler.reconcile()
                await self._mirror_dead_letters()
            except Unavailable as error:
                log.warning("cannot compare the database with Redis", part=error.part, error=error.message)
                continue
            if found:
                log.warning(
                    "the queue in Redis differed from the database and was mended",
                    queued_again=found.queued,
                    entries=found.mended,
                    removed=found.removed,
                )

    async def _mirror_dead_letters(self) -> None:
        if time.monotonic() - self._mirrored_at >= MIRROR_SECONDS:
            await self._resources.queue.mirror_dead(await self._resources.store.dead_letters.newest())
            self._mirrored_at = time.monotonic()
