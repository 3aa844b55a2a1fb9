"""The controller as one coroutine: all that is periodic or slow, but no runs.

It sends webhooks, makes events of what runs came to, wakes runs that waited for an event, looks after the pools of
agents, sends them what is scheduled, ends messages to agents whose time is up, makes deployments as they are wanted,
rents GPU machines, and removes what is past its time. All are rows in the database that any controller may take, so any
number of them may run. None needs Redis, and none is needed for runs to go on but for those that wait for an event. One
of them counts what users have stored.
What workers have left behind is removed too: sandboxes' Jobs, and what else old sessions left. It does not wait for
Redis, and ends when Redis turns out to be another platform's.
"""

import asyncio
import os
import shlex
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from backplane.background_access import connect_background_queue
from backplane.containers.engine import ContainerEngine
from backplane.domain.retry import RetryPolicy
from backplane.leases.redis import RedisLease
from backplane.process.metrics import metrics_served, process_registry
from backplane.process.retrying import OnUnavailable, log_unavailable, until_available
from backplane.process.tasks import abandon, end
from backplane.redis_access import rq_is_possible
from backplane.resources import Resources, connect, run_actions
from backplane.settings import Settings, fixed
from controller.agent_events import AgentEventsLoop, TurnRules
from controller.agents import AgentsLoop
from controller.bus import BusLoop
from controller.cleanup.retention import RetentionLimits, RetentionLoop
from controller.cleanup.sessions import SweepTimer
from controller.containers.service import container_use_loop
from controller.deployments.service import deployments_loop
from controller.jobs.dispatch import JobDispatch
from controller.leader import Leader
from controller.metrics import ControllerMetrics
from controller.pools.service import pool_loop
from controller.schedules import SchedulesLoop
from controller.services.checks import ServiceChecker
from controller.services.container_plan import ServicesHost
from controller.services.containers import ServiceContainers
from controller.services.health import ServiceHealthLoop
from controller.usage import FileCounting, RowCounting
from controller.webhooks.loop import SendingRules, WebhookLoop, lease_for, share_of_user
from controller.webhooks.sender import connect_sender

if TYPE_CHECKING:
    from controller.cleanup.sandbox_jobs import SandboxJobCollector
    from controller.deletion_cost import DeletionCosts
    from controller.pools.launcher import Launcher

log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set, and until what is being sent then has been answered."""
    registry = process_registry()
    metrics = ControllerMetrics(registry)
    async with (
        metrics_served(registry, settings.metrics_host, settings.metrics_port) as ready,
        connect(settings) as resources,
    ):
        stopping = asyncio.create_task(stop.wait(), name="stop")
        starting = asyncio.create_task(_prepare(resources), name="prepare")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                ready.set()
                log.info("controller ready")
                await _work(settings, resources, metrics, stopping)
                log.info("controller ended")
        finally:
            await end(stopping)
            await abandon(starting)


def _log_waiting(part: str) -> OnUnavailable:
    return log_unavailable("waiting for a part", part=part)


async def _prepare(resources: Resources) -> None:
    await until_available(resources.store.migrate, _log_waiting("database"))
    await until_available(resources.workspaces.prepare, _log_waiting("workspace"))


async def _watch_queue(resources: Resources) -> None:
    """Check, as soon as Redis answers, that it holds this platform's queue. Ends only by QueueOfAnother."""
    await until_available(resources.open_queue, _log_waiting("redis"))
    await asyncio.Event().wait()


async def _work(
    settings: Settings,
    resources: Resources,
    metrics: ControllerMetrics,
    stopping: "asyncio.Task[bool]",
) -> None:
    store, workspaces = resources.store, resources.workspaces
    retention = RetentionLoop(
        store.retention,
        workspaces,
        RetentionLimits(
            runs_days=settings.retention_runs_days,
            created_days=settings.retention_created_days,
            events_days=settings.retention_events_days,
            workspace_days=settings.retention_workspace_days,
        ),
        batch=fixed.RETENTION_BATCH,
        pause_seconds=fixed.RETENTION_PAUSE_SECONDS,
        period_seconds=fixed.RETENTION_SECONDS,
    )
    bus = BusLoop(
        store,
        resources.doorbell,
        run_actions(settings, resources).wake,
        metrics,
        retention_days=settings.retention_bus_days,
    )
    actions = run_actions(settings, resources)
    agents = AgentsLoop(store, actions)
    rules = TurnRules(settings.run_timeout_seconds, settings.run_max_retries)
    agent_events = AgentEventsLoop(store, actions, rules)
    schedules = SchedulesLoop(store, actions, rules)
    async with connect_sender(
        allow_private=settings.webhook_allow_private, attempt_seconds=settings.webhook_timeout_seconds
    ) as sender:
        webhooks = WebhookLoop(
            store.webhooks,
            sender,
            RetryPolicy(
                settings.webhook_max_attempts - 1,
                fixed.WEBHOOK_RETRY_BASE_SECONDS,
                fixed.WEBHOOK_RETRY_MAX_SECONDS,
            ),
            metrics,
            SendingRules(
                poll_seconds=fixed.WEBHOOK_POLL_SECONDS,
                lease_seconds=lease_for(settings.webhook_timeout_seconds),
                at_once=settings.webhook_concurrency,
                user_at_once=share_of_user(settings.webhook_concurrency),
            ),
        )
        loops = [
            asyncio.create_task(_watch_queue(resources), name="whose queue"),
            asyncio.create_task(webhooks.run(), name="webhooks"),
            asyncio.create_task(retention.run(), name="retention"),
            asyncio.create_task(bus.run(), name="bus"),
            asyncio.create_task(bus.remove_old(), name="bus retention"),
            asyncio.create_task(agents.run(), name="agents"),
            asyncio.create_task(agent_events.run(), name="agent events"),
            asyncio.create_task(schedules.run(), name="schedules"),
        ]
        checker = ServiceChecker()
        health = ServiceHealthLoop(
            store.services, resources.doorbell, checker.check, _services_leader(settings, resources, "health"), metrics
        )
        loops.append(asyncio.create_task(health.run(), name="service health"))
        if settings.services_container_engine:
            containers = await _service_containers(settings, resources)
            loops.append(asyncio.create_task(containers.run(), name="service containers"))
        rows = RowCounting(
            _counting_lease(settings, resources, "rows"), fixed.USAGE_SECONDS, store.usage_counts, resources.storage
        )
        loops.append(asyncio.create_task(rows.run(), name="count rows"))
        launcher = _deployments(settings) if settings.agent_launcher == "kubernetes" else None
        if settings.agent_launcher != "processes":
            pools = pool_loop(settings, resources, launcher, metrics)
            loops.append(asyncio.create_task(pools.run(), name="pools"))
        if settings.metrics_storage_seconds:
            lease = _counting_lease(settings, resources, "files")
            files = FileCounting(lease, settings.metrics_storage_seconds, workspaces, resources.storage, metrics)
            loops.append(asyncio.create_task(files.run(), name="count files"))
        if settings.sandbox == "kubernetes":
            collector = _collector(settings, resources, metrics)
            loops.append(asyncio.create_task(collector.run(), name="sandbox jobs"))
        if settings.pod_deletion_cost and (costs := _deletion_costs(settings, resources)):
            loops.append(asyncio.create_task(costs.run(), name="deletion costs"))
        queue = connect_background_queue(settings) if rq_is_possible(settings) else None
        loops.append(asyncio.create_task(JobDispatch(resources, queue, metrics.jobs_due).run(), name="jobs"))
        sweep = SweepTimer(settings, store.runs, metrics.sessions_removed)
        loops.append(asyncio.create_task(sweep.run(), name="sweep"))
        if settings.deploy_target:
            loops.append(asyncio.create_task(_deploy(settings, resources, metrics), name="deployments"))
        containers_use = _look_at_containers(settings, resources, metrics)
        loops.append(asyncio.create_task(containers_use, name="what containers use"))
        if settings.gpu_provider:
            loops.append(asyncio.create_task(_rent(settings, resources, metrics), name="GPU machines"))
        try:
            done, _ = await asyncio.wait({stopping, *loops}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            await end(*loops)
            if launcher is not None:
                await launcher.close()
            if queue is not None:
                queue.close()
            await checker.close()
            await webhooks.drain(settings.webhook_timeout_seconds)


async def _deploy(settings: Settings, resources: Resources, metrics: ControllerMetrics) -> None:
    platform_id = await until_available(resources.store.platform_id, _log_waiting("database"))
    await deployments_loop(settings, resources, metrics.registry, platform_id).run()


async def _look_at_containers(settings: Settings, resources: Resources, metrics: ControllerMetrics) -> None:
    platform_id = await until_available(resources.store.platform_id, _log_waiting("database"))
    loop = await container_use_loop(settings, platform_id, metrics.registry)
    if loop is not None:
        await loop.run()
    await asyncio.Event().wait()


async def _rent(settings: Settings, resources: Resources, metrics: ControllerMetrics) -> None:
    # 0.07 s of CPU, which only those pay who rent machines.
    from controller.gpus.service import open_gpu_loop  # noqa: PLC0415

    platform_id = await until_available(resources.store.platform_id, _log_waiting("database"))
    async with open_gpu_loop(settings, resources, metrics.registry, platform_id) as loop:
        await loop.run()


def _collector(settings: Settings, resources: Resources, metrics: ControllerMetrics) -> "SandboxJobCollector":
    # The HTTP library behind it takes 0.2 s and 25 MB.
    from controller.cleanup.sandbox_jobs import SandboxJobCollector, Times  # noqa: PLC0415

    return SandboxJobCollector(
        resources.store.runs,
        resources.queue,
        settings.sandbox_namespace,
        Times(
            lease=settings.lease_seconds,
            finished=settings.sandbox_job_ttl_seconds,
            session=settings.session_max_seconds,
        ),
        period_seconds=fixed.SANDBOX_COLLECT_SECONDS,
        collected=metrics.jobs_collected,
    )


def _deletion_costs(settings: Settings, resources: Resources) -> "DeletionCosts | None":
    # The HTTP library behind them takes 0.2 s and 25 MB.
    from backplane.kubernetes.login import own_namespace  # noqa: PLC0415
    from controller.deletion_cost import DeletionCosts  # noqa: PLC0415

    namespace = settings.pod_namespace or own_namespace()
    if not namespace:
        log.error("POD_DELETION_COST is set outside of a pod; set POD_NAMESPACE to the namespace of the worker pods")
        return None
    return DeletionCosts(
        resources.queue,
        namespace,
        settings.pod_deletion_cost_selector,
        period_seconds=fixed.POD_DELETION_COST_SECONDS,
    )


def _deployments(settings: Settings) -> "Launcher | None":
    # The HTTP library behind it takes 0.2 s and 25 MB.
    from backplane.kubernetes.login import own_namespace  # noqa: PLC0415
    from controller.pools.kubernetes import DeploymentLauncher  # noqa: PLC0415

    namespace = settings.pod_namespace or own_namespace()
    if not namespace:
        log.error("AGENT_LAUNCHER is kubernetes outside of a pod; set POD_NAMESPACE to the namespace of the pools")
        return None
    return DeploymentLauncher(namespace)


def _counting_lease(settings: Settings, resources: Resources, what: str) -> RedisLease:
    redis = resources.redis
    return RedisLease(redis, redis.keys.counting(what), _process_name(), seconds=settings.lease_seconds)


async def _service_containers(settings: Settings, resources: Resources) -> ServiceContainers:
    return ServiceContainers(
        resources.store.services,
        ContainerEngine(shlex.split(settings.services_container_engine)),
        ServicesHost(settings.services_bind, await resources.store.platform_id()),
        Path(settings.services_env_dir) if settings.services_env_dir else None,
        _services_leader(settings, resources, "containers"),
    )


def _services_leader(settings: Settings, resources: Resources, what: str) -> Leader:
    redis = resources.redis
    return Leader(RedisLease(redis, redis.keys.services(what), _process_name(), seconds=settings.lease_seconds))


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
