"""What the tour needs: the API on a port of this machine, and worker processes."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from backplane.settings import Settings
from tests.integration.api.running import running
from tests.platform.workers import QUICK, WorkerProcess, skip_without_isolation, worker
from tests.settings import settings_of


@pytest.fixture
def settings(redis: str, sqlite_database: str, tmp_path: Path) -> Settings:
    """A real Redis, a SQLite file, a folder of workspaces; leases of a second, so that a lost worker is found soon."""
    parts = {
        "redis_url": redis,
        "database_url": sqlite_database,
        "workspace_dir": tmp_path / "workspaces",
    }
    return settings_of(**{**QUICK, **parts})


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client that sends its user's token to a running API."""
    async with running(settings) as served:
        yield (await served.person()).http


@pytest.fixture
async def a_worker(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A worker, which works as `python -m worker` does, in this process: to start another one takes two seconds."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    async with worker(settings):
        yield


@pytest.fixture
async def start_worker(settings: Settings, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[WorkerProcess]]]:
    """`await start_worker()` starts `python -m worker`. What still runs at the end of the test is killed."""
    scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=tmp_path))
    async with AsyncExitStack() as stack:

        async def start() -> WorkerProcess:
            process = WorkerProcess(settings, scratch)
            stack.push_async_callback(process.kill)
            await process.start()
            return process

        yield start


@pytest.fixture
async def isolated() -> None:
    await skip_without_isolation()
