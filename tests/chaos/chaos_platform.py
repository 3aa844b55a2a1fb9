"""The platform that chaos breaks: its processes, started as production starts them, each with connections of its own.

The servers are the caller's. Everything else ends with the block.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from agentctl.local.embedded import free_port
from backplane.domain.users import Tier, User
from backplane.net.hang_ups import hang_ups_as
from backplane.resources import Resources, connect
from backplane.settings import Settings
from tests.chaos import processes
from tests.chaos.faults import FaultInjector
from tests.chaos.proxies import S3Proxy, TcpProxy
from tests.servers import PostgresServer, RedisServer, S3Server

LEASE_SECONDS = 2.0
PLATFORM = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "HEARTBEAT_SECONDS": "0.5",
    "RETRY_BASE_SECONDS": "0.2",
    "RETRY_MAX_SECONDS": "1",
    "WORKER_GRACE_SECONDS": "2",
    # However often its worker is killed here, it is not the run's fault.
    "WORKER_CRASH_LIMIT": "1000",
    "STREAM_HEARTBEAT_SECONDS": "1",
    "QUEUE_MAX_WAITING": "0",
    "QUEUE_MAX_WAITING_ALL": "0",
    "API_RATE_PER_SECOND": "0",
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "info",
    "QUEUES": "side",
    **{f"USER_CONCURRENCY_{tier}": "0" for tier in ("FREE", "STANDARD", "BETA", "ADMIN")},
}
"""So quick that what is broken is mended within seconds, and without the limits that would turn runs away."""


@dataclass(frozen=True, slots=True)
class Servers:
    redis: RedisServer
    postgres: PostgresServer
    s3: S3Server


@contextmanager
def running_servers(folder: Path) -> Iterator[Servers]:
    """Servers of their own, with their data below the folder."""
    with ExitStack() as stack:
        servers = Servers(
            RedisServer(folder / "redis", keeps_data=True),
            PostgresServer(folder / "postgres"),
            S3Server(folder / "s3"),
        )
        for server in (servers.redis, servers.postgres, servers.s3):
            server.start()
            stack.callback(server.stop)
        yield servers


@dataclass(frozen=True)
class Platform:
    injector: FaultInjector
    http: httpx.AsyncClient
    direct: Resources
    user: User
    marker: str
    folder: Path

    @property
    def marks(self) -> Path:
        return self.folder / "marks"

    @property
    def processes(self) -> list[processes.Process]:
        return [self.injector.api, *self.injector.workers]


@dataclass(frozen=True, slots=True)
class Part:
    """A process beside the API: `python -m` with these arguments, and with this environment above the platform's.
    `claims`: it is a worker of ordinary queues. `clock_off_seconds`: of its host's clock, from the start."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    claims: bool = True
    clock_off_seconds: float = 0.0


@asynccontextmanager
async def running_platform(
    servers: Servers,
    folder: Path,
    thread: ThreadPoolExecutor,
    parts: Sequence[Part],
    settings: Mapping[str, str],
    before: Callable[[Resources], Awaitable[object]] | None = None,
) -> AsyncIterator[Platform]:
    """The API and these parts, each with connections of its own that can be cut. `settings`: above those of PLATFORM.
    `before` is called before they start, with the tables there. Raises RuntimeError when it does not start."""
    marker = uuid4().hex
    database = servers.postgres.create_database()
    bucket = servers.s3.create_bucket()
    scratch = folder / "scratch"
    scratch.mkdir()
    own = {**PLATFORM, **settings}
    s3 = {
        "S3_BUCKET": bucket,
        "S3_ENDPOINT": servers.s3.endpoint,
        "S3_REGION": servers.s3.region,
        "S3_ACCESS_KEY": servers.s3.access_key,
        "S3_SECRET_KEY": servers.s3.secret_key,
    }
    straight = {"REDIS_URL": servers.redis.url, "DATABASE_URL": servers.postgres.url(database), **s3}
    async with AsyncExitStack() as stack:
        s3_proxy = await stack.enter_async_context(S3Proxy(servers.s3.port).running())
        redis_proxies, postgres_proxies = [], []
        environments = []
        for extra in ({}, *[part.environment for part in parts]):
            redis_proxy = await stack.enter_async_context(TcpProxy(servers.redis.port).running())
            postgres_proxy = await stack.enter_async_context(TcpProxy(servers.postgres.port).running())
            redis_proxies.append(redis_proxy)
            postgres_proxies.append(postgres_proxy)
            environments.append(
                {
                    **processes.own_environment(marker, scratch),
                    **own,
                    **s3,
                    "S3_ENDPOINT": f"http://{processes.HOST}:{s3_proxy.port}",
                    "REDIS_URL": _at(servers.redis.url, servers.redis.port, redis_proxy.port),
                    "DATABASE_URL": _at(servers.postgres.url(database), servers.postgres.port, postgres_proxy.port),
                    **extra,
                }
            )
        values = {name.lower(): value for name, value in {**own, **straight}.items()}
        direct = await stack.enter_async_context(connect(Settings.model_validate(values)))
        await direct.store.migrate()
        if before is not None:
            await before(direct)
        token, plain = await direct.store.users.create_token("chaos", Tier.STANDARD)
        port = free_port()
        api = processes.api(environments[0], port, folder / "api.log")
        others = []
        for part, environment in zip(parts, environments[1:], strict=True):
            log = folder / f"{part.name.replace(' ', '-')}.log"
            process = processes.Process(part.name, list(part.arguments), environment, log)
            if part.clock_off_seconds:
                process.set_clock(part.clock_off_seconds)
            others.append(process)
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://{processes.HOST}:{port}",
                headers={"Authorization": f"Bearer {plain}"},
                timeout=30.0,
                transport=_Transport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=20)),
            )
        )
        injector = FaultInjector(
            api,
            others,
            servers.redis,
            redis_proxies,
            servers.postgres,
            postgres_proxies,
            s3_proxy,
            thread,
            Counter(),
        )
        for process in (api, *others):
            stack.push_async_callback(process.kill)
            await process.start()
        platform = Platform(injector, http, direct, token.user, marker, folder)
        await _until_ready(platform, sum(part.claims for part in parts))
        yield platform


class _Transport(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with hang_ups_as(httpx.ConnectError):
            return await super().handle_async_request(request)


def _at(url: str, old_port: int, port: int) -> str:
    return url.replace(f":{old_port}/", f":{port}/")


async def _until_ready(platform: Platform, workers: int) -> None:
    async def ready() -> bool:
        with suppress(httpx.TransportError):
            answer = await platform.http.get("/agent/queue")
            return answer.status_code == 200 and answer.json()["workers"] >= workers
        return False

    if not await within(90.0, ready):
        logs = [path.read_text(errors="replace")[-1500:] for path in sorted(platform.folder.glob("*.log"))]
        raise RuntimeError("the platform did not start:\n" + "\n".join(logs))


async def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
