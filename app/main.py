"""uvicorn app.main:create_app --factory

The API process: HTTP in, server-sent events out. It commits runs and queues them; it never carries one out. A part that
is down does not keep it from starting: `/health/ready` says what is missing, and it is used as soon as it is there.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.routing import Route

from app import errors
from app.agents.actions import AgentActions
from app.auth import Authenticator
from app.bus.publishing import BusPublisher
from app.context import ApiContext
from app.edge import server_log
from app.edge.audit import AuditedChanges
from app.edge.body_limit import BodyLimit
from app.edge.connections import ConnectionLimits, TrustedProxies
from app.edge.gate import Allowance, TokenGate
from app.edge.origin import Origin
from app.edge.protocol import install, running_server
from app.edge.root_path import RootPath
from app.edge.turns import Turns
from app.jobs import JobQueue
from app.kept_answer import KeptAnswer
from app.known_tools import KnownTools
from app.limits.rollout_waits import RolloutWaits
from app.limits.transfers import Transfers
from app.mcp.endpoint import McpEndpoint
from app.metrics import ApiMetrics, PlatformMetrics, RequestMetrics
from app.routes import (
    accounts,
    agent_messages,
    agent_pools,
    agents,
    artifacts,
    audit,
    bulk,
    bus,
    console,
    dead_letters,
    decisions,
    deployment_history,
    deployments,
    docs,
    events,
    execute,
    exports,
    files,
    gpus,
    handlers,
    health,
    hooks,
    logs,
    metrics,
    overview,
    preferences,
    queue,
    run_lists,
    runs,
    schedules,
    secrets,
    services,
    sessions,
    tools,
    usage,
    webhooks,
)
from app.schemas.description import TAGS, completed, kept_description
from app.schemas.webhooks import webhooks as sent_webhooks
from app.streams.hub import Hub, StreamLimits
from app.streams.sse import History
from app.submission import Submission
from app.validation import Validator
from backplane import VERSION
from backplane.configuration import ensure_utf8, log_misspelt, read_settings
from backplane.errors import InvalidInput, PlatformError
from backplane.limits.storage.limits import StorageLimits
from backplane.process import log as process_log
from backplane.process.loop_watchdog import watched
from backplane.process.metrics import process_registry
from backplane.process.tasks import end
from backplane.resources import Resources, bus_room, connect, database_file, storage_quota
from backplane.run_actions.known_queues import KnownQueues
from backplane.settings import Settings, fixed
from backplane.workspace.quota import Quota

log = structlog.get_logger()


def create_app(settings: Settings | None = None) -> FastAPI:
    is_alone = settings is None
    if settings is None:
        settings = _settings_or_exit()
    process_log.configure(format=settings.log_format, level=settings.log_level, process="api")
    if is_alone:
        process_log.own_this_process()
        log_misspelt(settings)
        gc.freeze()  # the process is this app's, and what is loaded stays: the collector need not go through it again
    server_log.clean_server_log()
    registry = process_registry()
    api_metrics = ApiMetrics(registry)
    mcp_endpoint = McpEndpoint(settings.request_max_bytes)
    proxies = TrustedProxies(settings.api_trusted_proxies)
    limits = ConnectionLimits(
        total=settings.api_connections_max,
        per_address=settings.api_anonymous_connections_per_address,
        keep_alive_seconds=settings.api_keep_alive_seconds,
        # A stream cuts off its reader by itself, and says so in the log.
        send_seconds=fixed.STREAM_SEND_TIMEOUT_SECONDS + 5,
        proxies=proxies,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        process_log.take_over_server_logs()  # of a server that was set up after the application was made
        if (server := running_server()) is not None:
            install(server.config, limits)
        elif not limits.installed:
            log.warning("this server's connections have no limits: start the API by uvicorn, or put a proxy before it")
        async with connect(settings, may_use_rest=True) as resources:
            platform_metrics = PlatformMetrics(resources, registry)
            context = _context(settings, resources, api_metrics, platform_metrics)
            api_metrics.watchers(lambda: context.hub.watchers)
            app.state.context = context
            app.state.authenticator = Authenticator(
                resources.store, resources.rate_limiter, settings.token_cache_seconds
            )
            tasks = [
                asyncio.create_task(context.hub.run(), name="hub"),
                asyncio.create_task(resources.prepare(), name="prepare"),
            ]
            for task in tasks:
                task.add_done_callback(partial(_end_on_fault, app))
            try:
                with watched():
                    async with mcp_endpoint.running():
                        yield
            finally:
                await end(*tasks)
                await platform_metrics.close()
                await context.readiness.close()

    app = FastAPI(
        title="Agent platform",
        version=VERSION,
        description="Runs AI agents as jobs: queued, carried out by workers, streamed as they happen.",
        lifespan=lifespan,
        # Below the path at which this description was found, whatever a proxy puts before it.
        servers=[{"url": "."}],
        openapi_tags=TAGS,
        webhooks=sent_webhooks,
        # All three are served by `app.routes.docs`.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would lead to the host that the request names, whoever sent that.
        redirect_slashes=False,
    )
    app.state.connection_limits = limits
    app.state.fault = None
    errors.install(app)
    # The last one is the outermost.
    app.add_middleware(Turns)
    app.add_middleware(AuditedChanges)
    app.add_middleware(BodyLimit, max_bytes=settings.request_max_bytes)
    allowance = Allowance(settings.api_anonymous_rate_per_second, settings.api_anonymous_rate_burst)
    app.add_middleware(TokenGate, limits=limits, proxies=proxies, allowance=allowance)
    app.add_middleware(RequestMetrics, metrics=api_metrics)
    app.add_middleware(Origin)
    app.add_middleware(RootPath, root_path=settings.api_root_path)
    # FastAPI asks one route after the other, so what every run calls stands first.
    routes: tuple[ModuleType, ...] = (
        execute,
        logs,
        health,
        run_lists,
        runs,
        decisions,
        dead_letters,
        accounts,
        secrets,
        events,
        files,
        artifacts,
        tools,
        handlers,
        queue,
        overview,
        usage,
        webhooks,
        bulk,
        exports,
        bus,
        hooks,
        agent_pools,
        agent_messages,
        agents,
        services,
        schedules,
        gpus,
        deployments,
        deployment_history,
        sessions,
        audit,
        preferences,
        docs,
        console,
    )
    if settings.api_metrics:
        routes = (*routes, metrics)
    for module in routes:
        # Not `include_router`: that makes each route once more, for each application and at its first request, and
        # looks for it twice at each.
        app.router.routes += module.router.routes
    if settings.api_mcp:
        app.router.routes.append(Route("/mcp", mcp_endpoint))
    _describe(app)
    app.state.description = kept_description(app.openapi)
    return app


def _settings_or_exit() -> Settings:
    try:
        ensure_utf8()
        settings = read_settings()
        database_file(settings)
    except InvalidInput as error:
        process_log.refuse_to_start(error.message)
        raise SystemExit(2) from None
    return settings


def _context(
    settings: Settings, resources: Resources, api_metrics: ApiMetrics, platform_metrics: PlatformMetrics
) -> ApiContext:
    quota = Quota(settings.workspace_max_bytes, settings.workspace_max_files, fixed.WORKSPACE_MAX_DEPTH)
    user_quota = storage_quota(settings)
    known_tools = KnownTools(
        resources.tool_catalogue, resources.queue.worker_ids, settings.mcp_servers, settings.tools_disabled
    )
    storage_limits = StorageLimits(resources.storage, user_quota)
    submission = Submission(
        settings,
        resources.store,
        resources.queue,
        resources.event_log,
        storage_limits,
        known_tools,
        KnownQueues(resources.queue, settings.queues),
    )
    return ApiContext(
        settings=settings,
        resources=resources,
        submission=submission,
        agent_actions=AgentActions(settings, resources, submission, storage_limits),
        publisher=BusPublisher(
            resources.store.bus,
            resources.doorbell,
            resources.rate_limiter,
            submission,
            bus_room(settings),
            api_metrics,
        ),
        validator=Validator(submission, known_tools),
        known_tools=known_tools,
        jobs=JobQueue(settings),
        rollout_waits=RolloutWaits(resources.store.deployments),
        hub=Hub(
            resources.event_log,
            resources.store,
            resources.queue,
            api_metrics,
            StreamLimits(
                buffer_events=fixed.STREAM_RING_EVENTS,
                buffer_bytes=fixed.STREAM_RING_BYTES,
                heartbeat_seconds=settings.stream_heartbeat_seconds,
                send_timeout_seconds=fixed.STREAM_SEND_TIMEOUT_SECONDS,
                token_check_seconds=settings.token_cache_seconds,
                max_watchers=settings.stream_watchers_max,
                max_watchers_of_user=settings.stream_watchers_user_max,
                positions_max=fixed.FEED_POSITIONS_MAX,
            ),
        ),
        history=History(resources.store, resources.event_log),
        quota=quota,
        transfers=Transfers(
            resources.storage,
            quota,
            user_quota,
            most_of_user=settings.transfers_user_max,
            bytes_per_second=settings.transfers_user_bytes_per_second,
        ),
        platform_metrics=platform_metrics,
        readiness=KeptAnswer(lambda: health.readiness_of(resources), health.KEPT_SECONDS),
    )


def _end_on_fault(app: FastAPI, task: "asyncio.Task[None]") -> None:
    """A part that must not end has: so that no stream hangs on it, the process ends, and whoever runs it starts it
    again. Who runs the API beside other work finds the error in `app.state.fault`."""
    if task.cancelled() or not (error := task.exception()):
        return
    app.state.fault = error
    if isinstance(error, PlatformError):
        log.critical("the API cannot work as it is set up, so it ends", part=task.get_name(), error=error.message)
    else:
        log.critical("a part of the API ended by a fault, so the API ends", part=task.get_name(), exc_info=error)
    signal.raise_signal(signal.SIGTERM)


def _describe(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        # FastAPI keeps what it has built.
        return app.openapi_schema or completed(generate())

    app.openapi = openapi  # type: ignore[method-assign]
