"""The API as a running server, and people who use it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from backplane.settings import Settings
from tests.integration.api.running import Api, Person, running
from worker.service import serve


@pytest.fixture
def settings_with(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Settings]:
    """Settings on an empty Redis, SQLite and a folder, with what the test says; the environment is not read."""

    def made(**values: Any) -> Settings:
        if "redis_url" not in values:
            values["redis_url"] = request.getfixturevalue("redis")
        parts = {"database_url": f"sqlite:///{tmp_path / 'agent.db'}", "workspace_dir": tmp_path / "workspaces"}
        return Settings.model_validate({**parts, "log_level": "error", "token_cache_seconds": 0.0, **values})

    return made


@pytest.fixture
async def start_api(settings_with: Callable[..., Settings]) -> AsyncIterator[Callable[..., Awaitable[Api]]]:
    """Starts an API with these settings: `await start_api(stream_ring_events=16)`."""
    async with AsyncExitStack() as stack:

        async def start(*, send_buffer: int | None = None, **values: Any) -> Api:
            return await stack.enter_async_context(running(settings_with(**values), send_buffer=send_buffer))

        yield start


@pytest.fixture
async def api(start_api: Callable[..., Awaitable[Api]]) -> Api:
    return await start_api()


@pytest.fixture
async def person(api: Api) -> Person:
    return await api.person()


@pytest.fixture
async def start_worker() -> AsyncIterator[Callable[[Settings], None]]:
    """Starts a real worker on the settings of an API; it ends with the test."""
    async with AsyncExitStack() as stack:

        def start(settings: Settings) -> None:
            stop = asyncio.Event()
            short = {"lease_seconds": 2.0, "heartbeat_seconds": 0.2, "reconcile_seconds": 0.2}
            working = asyncio.create_task(serve(settings.model_copy(update=short), stop))

            async def end() -> None:
                stop.set()
                await working

            stack.push_async_callback(end)

        yield start
