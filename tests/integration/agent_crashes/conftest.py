"""A platform with a scripted model that costs money, and workers that die."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.integration.agent.conftest import UNLIMITED, isolated, models
from tests.integration.agent_crashes.crashes import PRICES, Marking, fund
from tests.integration.worker.conftest import StartPlatform, start_platform, start_process
from tests.platform.workers import Platform, WorkerProcess
from tests.scripted_models import ScriptedModels

__all__ = ["isolated", "models", "start_platform", "start_process"]

StartDying = Callable[[str], Awaitable[WorkerProcess]]


@pytest.fixture
def model(models: ScriptedModels) -> Marking:
    marking = Marking()
    models.answer(marking)
    return marking


@pytest.fixture
async def settings_of(models: ScriptedModels) -> dict[str, Any]:
    server = {"kind": "openai", "url": models.url}
    return {**UNLIMITED, "model_servers": {"local": server}, "model": "local/m", "model_prices": PRICES}


@pytest.fixture
async def platform(
    request: pytest.FixtureRequest, start_platform: StartPlatform, model: Marking, settings_of: dict[str, Any]
) -> Platform:
    """Parameter `postgres`: on that; else on SQLite."""
    values = dict(settings_of)
    if getattr(request, "param", "sqlite") == "postgres":
        values["database_url"] = request.getfixturevalue("postgres_database")
    platform = await start_platform(**values)
    await fund(platform)
    return platform


@pytest.fixture
async def start_dying(platform: Platform) -> AsyncIterator[StartDying]:
    """`await start_dying("after begin_step 2")`: a worker that kills itself there."""
    async with AsyncExitStack() as stack:

        async def start(at: str) -> WorkerProcess:
            module = "tests.integration.agent_crashes.dying_worker"
            process = WorkerProcess(platform.settings, platform.scratch, module=module, environment={"DIES_AT": at})
            stack.push_async_callback(process.kill)
            await process.start()
            return process

        yield start
