"""The loop that looks after the pools, with what it needs: for the controller, and for a process of its own."""

import asyncio
import os
import socket
import uuid

import structlog

from backplane.leases.redis import RedisLease
from backplane.process.metrics import metrics_served, process_registry
from backplane.process.retrying import log_unavailable, until_available
from backplane.process.tasks import abandon, end
from backplane.resources import Resources, connect
from backplane.settings import Settings
from controller.leader import Leader
from controller.metrics import ControllerMetrics
from controller.pools.children import ChildLauncher, logs_beside
from controller.pools.launcher import Launcher
from controller.pools.loop import PoolLoop

log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event, logs: str | None = None) -> None:
    """Start processes of pools as children of this one until `stop` is set, then end them."""
    registry = process_registry()
    metrics = ControllerMetrics(registry)
    launcher = ChildLauncher(
        grace_seconds=settings.worker_grace_seconds, logs=logs_beside(logs), variables={"METRICS_PORT": "0"}
    )
    async with (
        metrics_served(registry, settings.metrics_host, settings.metrics_port) as ready,
        connect(settings) as resources,
    ):
        stopping = asyncio.create_task(stop.wait(), name="stop")
        working = asyncio.create_task(_work(settings, resources, launcher, metrics, ready), name="pools")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            await end(working, stopping)
            await launcher.close()
            await abandon(working)
    log.info("pools ended")


async def _work(
    settings: Settings, resources: Resources, launcher: Launcher, metrics: ControllerMetrics, ready: asyncio.Event
) -> None:
    waiting = log_unavailable("waiting for a part")
    await until_available(resources.store.migrate, waiting)
    await until_available(resources.open_queue, waiting)
    ready.set()
    log.info("pools ready")
    await pool_loop(settings, resources, launcher, metrics).run()


def pool_loop(
    settings: Settings, resources: Resources, launcher: Launcher | None, metrics: ControllerMetrics
) -> PoolLoop:
    owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    lease = RedisLease(resources.redis, resources.redis.keys.managing, owner, seconds=settings.lease_seconds)
    return PoolLoop(resources, Leader(lease), launcher, metrics)
