"""What the benchmarks measure against: the platform's own processes, started as production starts them, on loopback.

One Redis, one database, any number of API processes and of workers, and a folder or an S3 server for the workspaces.
All of it ends with the block, and with this process.
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agentctl.local.embedded import free_port
from backplane.domain.users import Tier
from backplane.process.supervisor import dies_with_parent
from backplane.resources import connect_store
from backplane.settings import Settings
from bench._processes import children
from tests.servers import PostgresServer, RedisServer, S3Server, Server

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 15.0


@dataclass
class Platform:
    port: int
    token: str
    redis: RedisServer
    environment: dict[str, str]
    servers: list[Server] = field(default_factory=list)
    """Redis and PostgreSQL; the S3 server is not among them."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """The API (with several processes it is their parent), then the workers."""

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, timeout=30)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def execute(self, connection: http.client.HTTPConnection, **body: object) -> dict[str, object]:
        self.send(connection, **body)
        return self.answer(connection)

    def send(self, connection: http.client.HTTPConnection, **body: object) -> None:
        connection.request("POST", "/agent/execute", json.dumps(body), self.headers)

    def answer(self, connection: http.client.HTTPConnection) -> dict[str, object]:
        response = connection.getresponse()
        answer: dict[str, object] = json.loads(response.read())
        if response.status >= 300:
            raise RuntimeError(f"{response.status}: {answer}")
        return answer


@contextlib.contextmanager
def platform(
    database: str,
    *,
    apis: int = 1,
    workers: int = 1,
    s3: bool = False,
    persistence: str = "none",
    **settings: str,
) -> Iterator[Platform]:
    """`database` is sqlite or postgres, `persistence` (of Redis) none or aof. `settings` go to every process's
    environment. Several API processes listen on the one port. `apis` 0: `python -m standalone` in place of API and
    workers, which is one worker."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-bench-")))
        folder.chmod(0o755)
        redis = RedisServer(folder / "redis", keeps_data=persistence == "aof", appendfsync="everysec")
        redis.start()
        stack.callback(redis.stop)
        servers: list[Server] = [redis]
        url = f"sqlite:///{folder / 'agent.db'}"
        if database == "postgres":
            postgres = PostgresServer(folder / "postgres")
            postgres.start()
            stack.callback(postgres.stop)
            servers.append(postgres)
            url = postgres.url(postgres.create_database())
        environment = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": redis.url,
            "DATABASE_URL": url,
            "WORKSPACE_DIR": str(folder / "workspaces"),
            "LOG_LEVEL": "warning",
            "API_RATE_PER_SECOND": "0",
            # All clients come from one address, and many before they have shown their token.
            "API_ANONYMOUS_CONNECTIONS_PER_ADDRESS": "0",
            "STREAM_WATCHERS_MAX": "40000",
            "STREAM_WATCHERS_USER_MAX": "20000",
            **(s3_environment(stack, folder) if s3 else {}),
            **settings,
        }
        port = free_port()
        started = Platform(port, asyncio.run(_token(url)), redis, environment, servers)
        log = stack.enter_context((folder / "processes.log").open("ab"))
        for command in _commands(port, apis, workers):
            process = subprocess.Popen(
                dies_with_parent([sys.executable, "-m", *command]), env=environment, stdout=log, stderr=log
            )
            started.processes.append(process)
            stack.callback(stop, process)
        try:
            _wait_until_ready(started, workers if apis else 1)
        except BaseException:
            print((folder / "processes.log").read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        yield started


def _commands(port: int, apis: int, workers: int) -> list[list[str]]:
    """What stands behind `python -m`, of each process."""
    where = ["--host", HOST, "--port", str(port)]
    if not apis:
        return [["standalone", *where]]
    api = ["uvicorn", "app.main:create_app", "--factory", *where]
    api += ["--workers", str(apis)] if apis > 1 else []
    return [[*api, "--no-access-log", "--timeout-graceful-shutdown", "2"], *[["worker"]] * workers]


def s3_environment(stack: contextlib.ExitStack, folder: Path) -> dict[str, str]:
    server = S3Server(folder / "s3")
    server.start()
    stack.callback(server.stop)
    return {
        "S3_ENDPOINT": server.endpoint,
        "S3_REGION": server.region,
        "S3_BUCKET": server.create_bucket(),
        "S3_ACCESS_KEY": server.access_key,
        "S3_SECRET_KEY": server.secret_key,
    }


async def _token(url: str) -> str:
    settings = Settings(database_url=url)
    async with connect_store(settings) as store:
        await store.migrate()
        _, token = await store.users.create_token("bench", Tier.STANDARD)
    return token


def _wait_until_ready(started: Platform, workers: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, KeyError), contextlib.closing(started.connection()) as connection:
            connection.request("GET", "/agent/queue", headers=started.headers)
            if json.loads(connection.getresponse().read())["workers"] >= workers:
                return
        time.sleep(0.05)
    raise RuntimeError("the platform did not start")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for child in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
