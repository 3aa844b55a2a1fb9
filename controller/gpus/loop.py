"""Looks after the GPU machines, again and again, while this controller has the lease for it.

Two at once, for a moment, do no harm: each step is a change of a row that only one of them can make. While Redis is
away each may do it, since machines cost money also then.
"""

import asyncio
from contextlib import suppress

import structlog

from backplane.errors import Unavailable
from backplane.leases.redis import RedisLease
from backplane.process.tasks import run_together
from backplane.settings import fixed
from controller.gpus.fleet import GpuFleet
from controller.gpus.metrics import GpuMetrics

LOOKS_A_LEASE = 3

log = structlog.get_logger()


class GpuLoop:
    """`period_seconds`: how often it looks while nothing starts or ends."""

    def __init__(self, fleet: GpuFleet, lease: RedisLease, metrics: GpuMetrics, period_seconds: float) -> None:
        self._fleet = fleet
        self._lease = lease
        self._metrics = metrics
        self._period = period_seconds
        self._leads = asyncio.Event()
        self._complaint = ""

    async def run(self) -> None:
        try:
            await run_together(lease=self._keep_lease(), look=self._look_again_and_again())
        finally:
            with suppress(Unavailable):
                await self._lease.give_up()

    async def _keep_lease(self) -> None:
        """A pass may take longer than the lease, so it is renewed beside it."""
        while True:
            try:
                leads = await self._lease.hold()
            except Unavailable:
                leads = True
            if leads:
                self._leads.set()
            elif self._leads.is_set():
                log.info("another controller looks after the GPU machines")
                self._leads.clear()
                self._metrics.another_leads()
            await asyncio.sleep(self._lease.seconds / LOOKS_A_LEASE)

    async def _look_again_and_again(self) -> None:
        pause = fixed.GPU_LOOK_SECONDS
        while True:
            await self._leads.wait()
            try:
                is_moving = await self._fleet.look()
                pause = fixed.GPU_LOOK_SECONDS if is_moving else min(self._period, 3 * fixed.GPU_LOOK_SECONDS)
                self._complaint = ""
            except Unavailable as error:
                pause = min(max(2 * pause, error.retry_after), fixed.GPU_PROVIDER_PAUSE_MAX_SECONDS)
                if error.message != self._complaint:
                    log.warning("GPU machines are not looked after", part=error.part, error=error.message)
                self._complaint = error.message
            await asyncio.sleep(pause)
