"""Agents at work without a pool process: a worker serves their queues."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backplane.domain.agents import Agent, Pool
from backplane.domain.runs import FINAL, Run, RunStatus
from backplane.process.tasks import end
from backplane.resources import run_actions
from backplane.run_actions.pushing import push_open_message
from backplane.settings import Settings
from controller.agents import AgentsLoop
from tests.agents import sent, started_process
from tests.platform.workers import Platform, worker

ROLES = Path(__file__).parent / "roles"
ENDED = (*sorted(FINAL), RunStatus.WAITING)


@dataclass(frozen=True)
class Team:
    """Agents by name, each of a role of its own name's pool."""

    platform: Platform
    agents: dict[str, Agent]

    @property
    def settings(self) -> Settings:
        """Of a worker that takes all messages of these agents."""
        queues = [agent.queue for agent in self.agents.values()]
        values = {"worker_queues": queues, "roles_dir": str(ROLES), "worker_concurrency": 10}
        # No setting may name these queues: processes of pools serve them.
        return self.platform.settings.model_copy(update=values)

    async def sent(self, name: str, text: str = "hello", data: Any = None, **values: Any) -> str:
        """The id of the message."""
        resources = self.platform.resources
        added = await sent(resources.store, self.platform.user, self.agents[name], text, input=data, **values)
        await push_open_message(resources.store, resources.queue, resources.event_log, added.run.agent_id or "")
        return added.run.id

    async def ended(self, run_id: str) -> Run:
        return await self.platform.until(run_id, *FINAL)

    async def answer(self, name: str, text: str = "hello", data: Any = None, **values: Any) -> Any:
        """What the agent answers, or the code of the turn's error."""
        run = await self.ended(await self.sent(name, text, data, **values))
        if run.status is not RunStatus.COMPLETED:
            assert run.error is not None
            return run.error.code
        assert run.result is not None
        return run.result["value"]

    async def state(self, name: str) -> Any:
        return (await self.platform.resources.store.agents.state(self.platform.user.id, self.agents[name].id)).value


async def team_of(platform: Platform, **roles: str) -> Team:
    """`await team_of(platform, ada="scripted")`: agents by name, of these roles."""
    store = platform.resources.store
    agents: dict[str, Agent] = {}
    for name, role in roles.items():
        pool = f"{role}_pool"
        if pool not in {there.name for there in await store.agent_pools.list_all()}:
            await store.agent_pools.put(Pool(pool, role, datetime.now(UTC)))
        await started_process(store, f"process-of-{pool}", pool=pool, capacity=100)
        agents[name], _ = await store.agents.spawn(platform.user.id, pool, name, most=1000)
    return Team(platform, agents)


@asynccontextmanager
async def agents_looked_after(platform: Platform) -> AsyncIterator[None]:
    """As a controller does, without its pauses."""
    loop = AgentsLoop(platform.resources.store, run_actions(platform.settings, platform.resources))

    async def repeat() -> None:
        while True:
            await loop.work()
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(repeat())
    try:
        yield
    finally:
        await end(looking)


@asynccontextmanager
async def working(team: Team) -> AsyncIterator[Team]:
    async with worker(team.settings):
        yield team
