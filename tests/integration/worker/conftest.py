"""The platform without its API, and workers for it."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.users import Tier
from backplane.redis.client import RedisClients
from backplane.resources import connect
from tests.platform.workers import QUICK, Platform, WorkerProcess, skip_without_isolation, worker
from tests.settings import settings_of

StartPlatform = Callable[..., Awaitable[Platform]]


@pytest.fixture
async def start_platform(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    servers_folder: Path,
    sqlite_database: str,
) -> AsyncIterator[StartPlatform]:
    """`await start_platform(worker_concurrency=1)`: on an empty Redis, SQLite and a folder where nothing else is said;
    the environment is not read."""
    # `servers_folder` comes first: it is a temporary folder too, and not this test's.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    async with AsyncExitStack() as stack:

        async def start(**values: Any) -> Platform:
            if "redis_url" not in values:
                values["redis_url"] = request.getfixturevalue("redis")
            parts = {"database_url": sqlite_database, "workspace_dir": tmp_path / "workspaces"}
            parts |= {"memory_dir": str(tmp_path / "memory"), "artifacts_dir": str(tmp_path / "artifacts")}
            settings = settings_of(**{**parts, **QUICK, **values})
            resources = await stack.enter_async_context(connect(settings))
            await resources.store.migrate()
            await resources.workspaces.prepare()
            token, _ = await resources.store.users.create_token("ada", Tier.STANDARD)
            return Platform(settings, resources, token.user, scratch)

        yield start


@pytest.fixture
async def platform(start_platform: StartPlatform) -> Platform:
    return await start_platform()


@pytest.fixture
async def working_platform(platform: Platform) -> AsyncIterator[Platform]:
    """With a worker in this process."""
    async with worker(platform.settings):
        yield platform


@pytest.fixture
async def start_process(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[WorkerProcess]]]:
    """Starts a worker process: `await start_process(platform, worker_grace_seconds=0.1)`."""
    async with AsyncExitStack() as stack:

        async def start(platform: Platform, **values: Any) -> WorkerProcess:
            settings = platform.settings.model_copy(update=values)
            process = WorkerProcess(settings, platform.scratch)
            stack.push_async_callback(process.kill)
            await process.start()
            return process

        yield start


@pytest.fixture
async def isolated() -> None:
    await skip_without_isolation()


@pytest.fixture
async def clients(redis: str) -> AsyncIterator[RedisClients]:
    clients = RedisClients(redis)
    yield clients
    await clients.close()
