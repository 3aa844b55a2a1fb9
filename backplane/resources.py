"""The only place where adapters are chosen, connected and closed.

    async with connect(settings) as resources: ...

Nothing is connected at import, and nothing outlives the block. A part that is down does not stop a process from
starting: each call says so by raising Unavailable, `/health/ready` says which, and work goes on when it is back.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from backplane.agents.base import AgentRegistry
from backplane.agents.redis import RedisAgentRegistry
from backplane.artifacts.base import Artifacts
from backplane.artifacts.git import GitArtifacts
from backplane.bus.base import Doorbell
from backplane.bus.redis import RedisDoorbell
from backplane.domain.bus import BusRoom
from backplane.domain.runs import Priority
from backplane.domain.stored import StorageQuota
from backplane.errors import InvalidInput
from backplane.limits.buckets.base import TokenBuckets
from backplane.limits.buckets.redis import RedisTokenBuckets
from backplane.limits.rates.base import RateLimiter
from backplane.limits.rates.redis import RedisRateLimiter
from backplane.limits.slots.base import Slots
from backplane.limits.slots.redis import RedisSlots
from backplane.limits.storage.base import Storage
from backplane.limits.storage.limits import StorageLimits
from backplane.limits.storage.redis import RedisStorage
from backplane.logs.base import EventLog
from backplane.logs.redis import RedisEventLog
from backplane.logs.room import LogLimits
from backplane.process.retrying import log_unavailable, until_available
from backplane.queue.base import Caps, Queue, QueueRoom
from backplane.queue.redis import RedisQueue
from backplane.redis.client import RedisClients
from backplane.redis_access import redis_access, rest_is_set
from backplane.run_actions.actions import RunActions
from backplane.run_actions.known_queues import KnownQueues
from backplane.sealing import Seal
from backplane.settings import Settings, fixed
from backplane.store import SQLITE_PATH_BYTES as SQLITE_PATH_BYTES
from backplane.store import Database, Store, parse_url
from backplane.tool_catalogue.base import ToolCatalogue
from backplane.tool_catalogue.redis import RedisToolCatalogue
from backplane.workspace.base import WorkspaceStore
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.s3 import S3WorkspaceStore

log = structlog.get_logger()

NO_EVICTION = "noeviction"
"""The one policy by which a full Redis drops nothing: it refuses writes."""


@dataclass(frozen=True, slots=True)
class Resources:
    redis: RedisClients
    queue: Queue
    event_log: EventLog
    doorbell: Doorbell
    agent_registry: AgentRegistry
    store: Store
    workspaces: WorkspaceStore
    rate_limiter: RateLimiter
    storage: Storage
    tool_catalogue: ToolCatalogue
    slots: Slots
    buckets: TokenBuckets
    artifacts: Artifacts | None
    seal: Seal | None

    async def prepare(self, *, refused_seconds: float | None = None) -> None:
        """Wait until every part is there and fit for use: its tables, its queue, its bucket, files that can be
        written, read and deleted. Logs what it waits for. Raises PartRefuses when a part has refused for
        `refused_seconds`, and QueueOfAnother when Redis holds the queue of another platform."""
        calls = {"database": self.store.migrate, "redis": self.open_queue, "workspace": self.workspaces.prepare}
        for part, call in calls.items():
            await until_available(
                call, log_unavailable("waiting for a part", part=part), refused_seconds=refused_seconds
            )

    async def open_queue(self) -> None:
        """Make sure that Redis holds this platform's queue. Call it once in each process. Raises QueueOfAnother,
        Unavailable."""
        await self.queue.open(await self.store.platform_id())
        policy = await self.redis.eviction_policy()
        if policy not in (None, NO_EVICTION):
            log.warning(
                "Redis may drop what waits in the queue when its memory is full; set maxmemory-policy noeviction there",
                maxmemory_policy=policy,
            )


@asynccontextmanager
async def connect(settings: Settings, *, may_use_rest: bool = False) -> AsyncIterator[Resources]:
    """`may_use_rest`: for the API, which reaches Redis by REST where UPSTASH_REDIS_REST_URL says so. All others need
    connections."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(connect_store(settings))
        redis, event_log = _redis_and_events(settings, by_rest=may_use_rest and rest_is_set(settings))
        stack.push_async_callback(redis.close)
        registry = RedisAgentRegistry(redis, keep_seconds=fixed.AGENT_PROCESS_GONE_SECONDS)
        store.place_bell.rings(registry.ring)
        doorbell = RedisDoorbell(redis)
        store.bus_bell.rings(doorbell.ring)
        workspaces = _workspaces(settings)
        stack.push_async_callback(workspaces.close)
        yield Resources(
            redis=redis,
            queue=_queue(settings, redis),
            event_log=event_log,
            doorbell=doorbell,
            agent_registry=registry,
            store=store,
            workspaces=workspaces,
            rate_limiter=RedisRateLimiter(
                redis, per_second=settings.api_rate_per_second, burst=settings.api_rate_burst
            ),
            storage=RedisStorage(redis),
            tool_catalogue=RedisToolCatalogue(redis),
            slots=_slots(redis),
            buckets=RedisTokenBuckets(redis),
            artifacts=_artifacts(settings),
            seal=Seal.of(settings.secrets_key.get_secret_value()),
        )


@asynccontextmanager
async def connect_store(settings: Settings) -> AsyncIterator[Store]:
    """The database alone: for what needs nothing else (migrations, tokens)."""
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        pool_overflow=settings.database_pool_overflow,
        prepares=settings.database_prepared_statements,
    )
    try:
        yield Store(database)
    finally:
        await database.close()


@dataclass(frozen=True, slots=True)
class LeaseConnections:
    """What leases are renewed by, beside an event loop that is blocked."""

    queue: Queue
    slots: Slots
    store: Store


@asynccontextmanager
async def connect_for_leases(settings: Settings, platform: str) -> AsyncIterator[LeaseConnections]:
    """Connections for an event loop of their own: one to the database, and few to Redis. `platform`: of the queue that
    this process has opened (`Queue.platform`)."""
    async with AsyncExitStack() as stack:
        own = settings.model_copy(update={"database_pool_size": 1, "database_pool_overflow": 0})
        store = await stack.enter_async_context(connect_store(own))
        redis = _redis(settings)
        stack.push_async_callback(redis.close)
        yield LeaseConnections(_queue(settings, redis, platform), _slots(redis), store)


@asynccontextmanager
async def connect_workspaces(settings: Settings) -> AsyncIterator[WorkspaceStore]:
    """The workspaces alone."""
    workspaces = _workspaces(settings)
    try:
        yield workspaces
    finally:
        await workspaces.close()


def with_database_of_workers(settings: Settings) -> Settings:
    """The settings of a process that carries out runs: its database is behind PGBOUNCER_URL, where that is set. Raises
    InvalidInput when that is no URL of PostgreSQL."""
    url = settings.pgbouncer_url.get_secret_value()
    if not url:
        return settings
    try:
        is_sqlite = parse_url(url).drivername.startswith("sqlite")
    except InvalidInput as error:
        message = error.message.replace("DATABASE_URL", "PGBOUNCER_URL")
        raise InvalidInput(message, field="PGBOUNCER_URL") from None
    if is_sqlite:
        message = "PGBOUNCER_URL: this is SQLite; set the URL of a PgBouncer, or leave it empty"
        raise InvalidInput(message, field="PGBOUNCER_URL")
    return settings.model_copy(update={"database_url": settings.pgbouncer_url})


def database_file(settings: Settings) -> Path | None:
    """The file of an SQLite database; None for a server's. Raises InvalidInput when DATABASE_URL is no URL of a
    database."""
    url = parse_url(settings.database_url.get_secret_value())
    return Path(url.database or "").absolute() if url.drivername.startswith("sqlite") else None


async def migrate(settings: Settings) -> str | None:
    """Bring the database's tables to the newest state; the revision of a newer release that made them, if one did.
    Raises Unavailable when the database does not answer."""
    async with connect_store(settings) as store:
        return await store.migrate()


async def take_over_redis(settings: Settings) -> None:
    """Make the queue in Redis this database's, whosever it was: what it holds of another platform is removed. Raises
    QueueOfAnother when a newer release wrote it, Unavailable when the database or Redis does not answer."""
    async with connect(settings) as resources:
        await resources.store.migrate()
        await resources.queue.open(await resources.store.platform_id(), take_over=True)


def _redis(settings: Settings) -> RedisClients:
    url = settings.redis_url.get_secret_value()
    return RedisClients(url, prefix=settings.redis_key_prefix, access=redis_access(settings))


def _redis_and_events(settings: Settings, *, by_rest: bool) -> tuple[RedisClients, EventLog]:
    limits = LogLimits(
        run_bytes=fixed.STREAM_REDIS_RUN_BYTES,
        user_bytes=fixed.STREAM_REDIS_USER_BYTES,
        all_bytes=settings.stream_redis_bytes,
        run_events=fixed.STREAM_REDIS_EVENTS,
    )
    # A run may be silent for as long as it may run.
    keep_seconds = settings.run_timeout_max_seconds + fixed.STREAM_REDIS_TTL_SECONDS
    if not by_rest:
        redis = _redis(settings)
        return redis, RedisEventLog(redis, limits=limits, keep_seconds=keep_seconds)
    # The library takes 0.2 s to load, and few processes have any use for it.
    from backplane.logs.rest import RestEventLog  # noqa: PLC0415
    from backplane.redis.rest import RestClients  # noqa: PLC0415

    rest = RestClients(
        settings.upstash_redis_rest_url.get_secret_value(),
        settings.upstash_redis_rest_token.get_secret_value(),
        prefix=settings.redis_key_prefix,
    )
    log.warning(
        "Redis is reached by REST: each command is a request, each watched run keeps one open, and bulk actions and "
        "exports begin some seconds later unless JOBS_REDIS_URL is set"
    )
    return rest, RestEventLog(rest, limits=limits, keep_seconds=keep_seconds)


def _queue(settings: Settings, redis: RedisClients, platform: str = "") -> RedisQueue:
    return RedisQueue(
        redis,
        lease_seconds=settings.lease_seconds,
        initial_run_seconds=fixed.ESTIMATE_INITIAL_SECONDS,
        ageing_seconds=settings.queue_ageing_seconds,
        caps=_caps(settings),
        room=_room(settings),
        platform=platform,
    )


def _slots(redis: RedisClients) -> RedisSlots:
    return RedisSlots(redis, lease_seconds=fixed.MODEL_SLOT_LEASE_SECONDS, turn_seconds=fixed.MODEL_TURN_SECONDS)


def _caps(settings: Settings) -> Caps:
    return Caps(
        user={
            Priority.LOW: settings.user_concurrency_free,
            Priority.NORMAL: settings.user_concurrency_standard,
            Priority.HIGH: settings.user_concurrency_beta,
            Priority.CRITICAL: settings.user_concurrency_admin,
        },
        tier={
            Priority.LOW: settings.tier_concurrency_free,
            Priority.NORMAL: settings.tier_concurrency_standard,
            Priority.HIGH: settings.tier_concurrency_beta,
            Priority.CRITICAL: settings.tier_concurrency_admin,
        },
        resources=settings.resource_concurrency,
    )


def _room(settings: Settings) -> QueueRoom:
    return QueueRoom(
        user=settings.queue_max_waiting,
        overall=settings.queue_max_waiting_all,
        tier={
            Priority.LOW: settings.queue_max_waiting_free,
            Priority.NORMAL: settings.queue_max_waiting_standard,
            Priority.HIGH: settings.queue_max_waiting_beta,
            Priority.CRITICAL: settings.queue_max_waiting_admin,
        },
    )


def storage_quota(settings: Settings) -> StorageQuota:
    return StorageQuota(settings.user_max_runs, settings.user_max_events, settings.user_max_bytes)


def bus_room(settings: Settings) -> BusRoom:
    return BusRoom(settings.user_max_bus_events, settings.user_max_bus_bytes)


def run_actions(settings: Settings, resources: Resources) -> RunActions:
    """What is done to runs, with the limits that the settings name."""
    limits = StorageLimits(resources.storage, storage_quota(settings))
    known_queues = KnownQueues(resources.queue, settings.queues)
    return RunActions(resources.store, resources.queue, resources.event_log, limits, known_queues)


def _artifacts(settings: Settings) -> Artifacts | None:
    if not settings.artifacts_dir:
        return None
    return GitArtifacts(
        Path(settings.artifacts_dir),
        max_bytes=settings.artifacts_max_bytes,
        history_max_bytes=settings.artifacts_history_max_bytes,
        wait_seconds=fixed.ARTIFACTS_WAIT_SECONDS,
    )


def _workspaces(settings: Settings) -> WorkspaceStore:
    if not settings.s3_bucket:
        return LocalWorkspaceStore(settings.workspace_dir)
    return S3WorkspaceStore(
        settings.s3_bucket,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        virtual_host=settings.s3_virtual_host,
        create_bucket=settings.s3_create_bucket,
    )
