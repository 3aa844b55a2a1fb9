"""What becomes of agents that share a process with one that ends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from backplane.domain.agents import Pool
from backplane.domain.runs import RunStatus
from backplane.process.tasks import end
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.team import ROLES, Team
from tests.platform.workers import Platform, WorkerProcess

pytestmark = pytest.mark.slow

POOL = "scripted_pool"


@asynccontextmanager
async def started_again_and_again(platform: Platform) -> AsyncIterator[None]:
    """A process of the pool, and another one whenever it has ended."""
    settings = platform.settings.model_copy(update={"roles_dir": str(ROLES)})
    process = WorkerProcess(settings, platform.scratch, module="worker.pool", arguments=[POOL])

    async def keep_up() -> None:
        while True:
            await process.start()
            await process.ended()

    keeping = asyncio.create_task(keep_up())
    try:
        yield
    finally:
        await end(keeping)
        await process.kill()


async def test_a_role_that_ends_its_process_costs_itself_its_turn_and_not_its_neighbours(
    start_platform: StartPlatform,
) -> None:
    platform = await start_platform(worker_crash_limit=3)
    store = platform.resources.store
    await store.agent_pools.put(Pool(POOL, "scripted", datetime.now(UTC)))
    names = ("ada", "bob", "eve")
    team = Team(platform, {name: (await store.agents.spawn(platform.user.id, POOL, name, most=9))[0] for name in names})
    neighbours = [await team.sent(name, data={"do": "take", "seconds": 1.0}) for name in ("ada", "eve")]
    culprit = await team.sent("bob", data={"do": "exit"})
    async with started_again_and_again(platform):
        failed = await platform.until(culprit, RunStatus.FAILED)
        assert failed.error is not None
        assert failed.error.code == "worker_lost"
        for run_id in neighbours:
            await platform.completed(run_id)
            await platform.ends_whole(run_id)
        # The agent itself lives on.
        assert await team.answer("bob") == "heard: hello"
