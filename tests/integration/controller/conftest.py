"""A database with a user, somewhere to send to, and controllers in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runs import Run, RunStatus
from backplane.domain.users import Tier, User
from backplane.resources import connect_store, connect_workspaces
from backplane.settings import Settings, fixed
from backplane.store import Store
from backplane.workspace.base import WorkspaceStore
from controller.service import serve
from tests.integration.controller.receiving import Receiver, receiving
from tests.podman_images import image, small_limits
from tests.settings import settings_of
from tests.submitted import new_run

__all__ = ["image", "small_limits"]

QUICK = {
    "webhook_allow_private": True,
    "webhook_timeout_seconds": 5.0,
}
QUICK_LOOKS = {
    "WEBHOOK_POLL_SECONDS": 0.02,
    "WEBHOOK_RETRY_BASE_SECONDS": 0.02,
    "WEBHOOK_LEASE_SECONDS": 10.0,
    "RETENTION_SECONDS": 0.05,
    "RETENTION_PAUSE_SECONDS": 0.0,
}


@dataclass(frozen=True)
class Platform:
    """What controllers work on. A run here is made and ended by hand."""

    settings: Settings
    store: Store
    workspaces: WorkspaceStore
    user: User

    async def ended_run(self, url: str | None, status: RunStatus = RunStatus.COMPLETED) -> Run:
        run = await self.store.runs.create(new_run(self.user, webhook_url=url), start=True)
        assert await self.store.running_runs.take(run.id, 1)
        await self.store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(status, None))
        return run

    async def state(self, run: Run) -> tuple[str, int]:
        """Status and attempts of the run's newest delivery."""
        state = await self.store.webhooks.last_of(run.id)
        assert state
        return str(state.status), state.attempts


StartPlatform = Callable[..., Awaitable[Platform]]
StartController = Callable[[Settings], "asyncio.Task[None]"]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def start_platform(
    tmp_path: Path, sqlite_database: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartPlatform]:
    """`await start_platform(webhook_max_attempts=2)`: on SQLite and a folder where nothing else is said."""
    for name, value in QUICK_LOOKS.items():
        monkeypatch.setattr(fixed, name, value)
    async with AsyncExitStack() as stack:

        async def start(**values: Any) -> Platform:
            parts = {"database_url": sqlite_database, "workspace_dir": tmp_path / "workspaces"}
            settings = settings_of(**{**parts, **QUICK, **values})
            store = await stack.enter_async_context(connect_store(settings))
            workspaces = await stack.enter_async_context(connect_workspaces(settings))
            await store.migrate()
            await workspaces.prepare()
            token, _ = await store.users.create_token("ada", Tier.STANDARD)
            return Platform(settings, store, workspaces, token.user)

        yield start


@pytest.fixture
async def platform(start_platform: StartPlatform) -> Platform:
    return await start_platform()


class Controllers:
    """Controllers in this process; those that are left at the end of the test are stopped, as SIGTERM does."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], asyncio.Event] = {}

    def start(self, settings: Settings) -> "asyncio.Task[None]":
        stop = asyncio.Event()
        task = asyncio.create_task(serve(settings, stop))
        self._running[task] = stop
        return task

    def stop(self, task: "asyncio.Task[None]") -> None:
        self._running[task].set()

    async def end(self) -> None:
        for stop in self._running.values():
            stop.set()
        for task in self._running:
            await task


@pytest.fixture
async def controllers() -> AsyncIterator[Controllers]:
    made = Controllers()
    yield made
    await made.end()
