"""The worker as one coroutine: everything it needs is opened, run and closed here, in the order that loses nothing.

Which runs it takes its source decides: those of the queues that the settings name, or those of a pool's agents
(`worker.pool`).

Shutdown: stop claiming → drain (steps end or are handed back, with their events) → stop the loops → close the parts.
The heartbeat beats until the drain is over, so no lease ends while a step may still end well.
"""

import asyncio
import os
import socket
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog
from structlog.contextvars import bind_contextvars

from backplane.errors import Unavailable
from backplane.process.metrics import metrics_served, process_registry
from backplane.process.tasks import abandon, end
from backplane.resources import connect, with_database_of_workers
from backplane.settings import Settings, fixed
from backplane.store import Store
from worker.consumer import ClaimedRun, Consumer, Registration
from worker.context import WorkerContext, WorkerProcess, open_worker_context
from worker.execution import Execution
from worker.files.scratch import scratch_folder
from worker.heartbeat import Heartbeat
from worker.lease_keeper import LeaseKeeper, ProcessLeases
from worker.metrics import WorkerMetrics
from worker.reaper import Reaper
from worker.roles.installed_code import InstalledCode
from worker.roles.registry import RoleRegistry
from worker.run.event_writer import EventWriter
from worker.sandbox.open import open_sandbox
from worker.tools.publication import publish

log = structlog.get_logger()

WAIT_SECONDS = 5.0
"""A wake-up may be lost (taken by a worker that is stopped), so no worker waits for one for longer."""


class Source:
    """Which runs a worker takes: those of the queues that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def join(self, process: WorkerProcess, roles: RoleRegistry) -> Registration:
        """Called once, when the worker is about to take runs. `roles`: those that it has. Raises PlatformError."""
        return Registration(process.worker_id, self._settings.worker_concurrency, tuple(self._settings.worker_queues))

    async def run(self, consumer: Consumer) -> None:
        """Runs beside the consumer. When it returns the worker drains and ends, as if it were asked to."""
        await asyncio.Event().wait()

    async def keep(self, store: Store) -> None:
        """Called in another thread while the event loop is blocked: renew by `store` what the process has but its runs.
        What is lost stays lost. Raises Unavailable."""

    async def drain(self) -> None:
        """Called before the worker drains. Never raises Unavailable."""

    async def leave(self) -> None:
        """Called when the worker has drained. Never raises Unavailable."""


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    source: Source | None = None,
    *,
    give_up: Callable[[], None] = lambda: None,
) -> None:
    """Take and carry out runs until `stop` is set, then drain. `give_up`: called in another thread when the event loop
    has been blocked for so long that the leases are not renewed any more."""
    settings = with_database_of_workers(settings)
    registry = process_registry()
    async with metrics_served(registry, settings.metrics_host, settings.metrics_port) as ready:
        await _serve(settings, stop, ready, source or Source(settings), WorkerMetrics(registry), give_up)


async def _serve(
    settings: Settings,
    stop: asyncio.Event,
    ready: asyncio.Event,
    source: Source,
    metrics: WorkerMetrics,
    give_up: Callable[[], None],
) -> None:
    installed = InstalledCode.of(settings)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    bind_contextvars(worker=worker_id)
    async with open_sandbox(settings, worker_id, metrics) as sandbox, connect(settings) as resources:
        with scratch_folder(Path(tempfile.gettempdir())) as scratch:
            starting = asyncio.create_task(
                resources.prepare(refused_seconds=fixed.WORKSPACE_REFUSED_SECONDS), name="prepare"
            )
            stopping = asyncio.create_task(stop.wait(), name="stop")
            try:
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                    events = EventWriter(
                        resources.store,
                        resources.event_log,
                        flush_seconds=fixed.EVENTS_FLUSH_SECONDS,
                        gather_seconds=fixed.EVENTS_GATHER_SECONDS,
                    )
                    process = WorkerProcess(worker_id, resources, events, metrics, sandbox, scratch)
                    await _work(settings, process, installed, source, ready, stopping, give_up)
            finally:
                await end(stopping)
                await abandon(starting)


async def _work(
    settings: Settings,
    process: WorkerProcess,
    installed: InstalledCode,
    source: Source,
    ready: asyncio.Event,
    stopping: "asyncio.Task[bool]",
    give_up: Callable[[], None],
) -> None:
    async with open_worker_context(settings, process, installed) as worker:
        joining = asyncio.create_task(source.join(process, worker.roles), name="join")
        try:
            await asyncio.wait({joining, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                await abandon(joining)
                await source.leave()
                return
            registration = joining.result()
        finally:
            await end(joining)
        ready.set()  # not before its models are known to be what can be asked
        log.info(
            "worker ready",
            slots=registration.slots,
            queues=list(registration.queues),
            sandbox=process.sandbox.isolation.name,
        )
        try:
            await _consume(settings, worker, registration, source, stopping, give_up)
        finally:
            await source.leave()


async def _consume(
    settings: Settings,
    worker: WorkerContext,
    registration: Registration,
    source: Source,
    stopping: "asyncio.Task[bool]",
    give_up: Callable[[], None],
) -> None:
    resources, metrics, worker_id = worker.resources, worker.metrics, worker.worker_id
    running: dict[str, ClaimedRun] = {}
    metrics.running_runs(registration.slots, lambda: len(running))
    heartbeat = Heartbeat(resources, registration, settings.heartbeat_seconds, running)
    reaper = Reaper(
        resources,
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        reconcile_seconds=settings.heartbeat_seconds,
        leads=lambda: heartbeat.leads,
        lost=metrics.leases_lost,
    )
    consumer = Consumer(
        resources.queue,
        registration,
        lambda claim: Execution(claim, worker),
        running=running,
        # A claim counts from when it was asked for, so a wait must leave it most of its lease.
        wait_seconds=min(WAIT_SECONDS, settings.lease_seconds / 3),
        postponed=reaper.expect,
    )
    loops = [
        asyncio.create_task(loop, name=name)
        for name, loop in (
            ("events", worker.events.run()),
            ("model slots", resources.slots.run()),
            ("heartbeat", heartbeat.run()),
            ("cancels", heartbeat.listen_for_cancels()),
            ("reaper", reaper.run()),
            ("settle", consumer.settle()),
            ("source", source.run(consumer)),
            ("tools", publish(resources.tool_catalogue, worker.published_tools, worker_id)),
        )
    ]
    leases = ProcessLeases(resources, registration, running, source.keep)
    keeper = LeaseKeeper.of(settings, leases, resources.queue.platform, give_up)
    if (pool := worker.shared.gateway.models.pool) is not None:
        loops.append(asyncio.create_task(pool.run(), name="GPU machines"))
    consuming = asyncio.create_task(consumer.run(), name="consume")
    try:
        keeper.start()
        done, _ = await asyncio.wait({consuming, stopping, *loops}, return_when=asyncio.FIRST_COMPLETED)
        await end(consuming)
        await source.drain()
        worker.shared.sandbox.detach()
        worker.shared.scratch.removal.end()
        await consumer.drain(settings.worker_grace_seconds)
        for task in done - {stopping}:
            task.result()
    finally:
        keeper.end()
        await end(consuming, *loops)
        try:
            await resources.queue.deregister(worker_id)
        except Unavailable as error:
            log.warning("could not sign off", error=error.message)
    log.info("worker ended")
