"""The loop that looks after the pools: when processes are started and ended, and what becomes of agents meanwhile."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from backplane.domain.agents import Pool, PoolProcess
from backplane.errors import Unavailable
from backplane.process.tasks import end
from backplane.resources import Resources
from backplane.settings import fixed
from controller.metrics import ControllerMetrics
from controller.pools import children
from controller.pools.children import ChildLauncher
from controller.pools.launcher import Launcher
from controller.pools.service import pool_loop
from tests.integration.worker.conftest import StartPlatform, platform, start_platform
from tests.integration.worker.test_pool_processes import OVER, POOL, message, places, spawn
from tests.platform.workers import LONG_SECONDS, Platform, environment_of
from tests.waiting import wait_until

__all__ = ["platform", "start_platform"]


class EnteringLauncher(Launcher):
    """Enters processes in the database in place of starting them."""

    def __init__(self, resources: Resources) -> None:
        self._processes = resources.store.agent_processes
        self.started = 0
        self.ended: list[str] = []
        self.refuses = False
        self.refused = 0
        self.hindered: str | None = None

    async def coming(self, pool: str, entered: Sequence[PoolProcess]) -> int:
        return 1 if pool == POOL and self.hindered else 0

    async def hindrance(self, pool: str) -> str | None:
        return self.hindered

    async def start(self, pool: Pool, count: int, wanted: int) -> None:
        if self.refuses:
            self.refused += 1
            raise Unavailable("no room on this machine", part="pool")
        for _ in range(count):
            self.started += 1
            await self._processes.register(
                f"p-{self.started}",
                pool.name,
                node="node",
                ranges=None,
                capacity=pool.agents_per_process,
                lease_seconds=600,
            )

    async def end(self, pool: Pool, processes: Sequence[PoolProcess], wanted: int) -> None:
        for process in processes:
            self.ended.append(process.id)
            await self._processes.deregister(process.id)

    async def close(self) -> None:
        pass


@asynccontextmanager
async def looking_after(platform: Platform, launcher: Launcher | None) -> AsyncIterator[CollectorRegistry]:
    registry = CollectorRegistry()
    loop = pool_loop(platform.settings, platform.resources, launcher, ControllerMetrics(registry))
    task = asyncio.create_task(loop.run(), name="pools under test")
    try:
        yield registry
    finally:
        await end(task)
        if not task.cancelled():
            task.result()


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "AGENT_MANAGE_SECONDS", 0.05)
    monkeypatch.setattr(fixed, "AGENT_REPAIR_SECONDS", 0.05)
    monkeypatch.setattr(fixed, "AGENT_PROCESS_EMPTY_SECONDS", 0.1)
    monkeypatch.setattr(fixed, "AGENT_SHORTAGE_SECONDS", 0.05)


async def until_agents(platform: Platform, expected: dict[str, int]) -> None:
    async def are_those() -> bool:
        return await places(platform) == expected

    await wait_until(are_those, LONG_SECONDS, f"agents by process are {expected}")


@pytest.mark.usefixtures("quick_looks")
async def test_the_eleventh_agent_starts_a_process_and_what_is_empty_ends(platform: Platform) -> None:
    launcher, store = EnteringLauncher(platform.resources), platform.resources.store
    async with looking_after(platform, launcher) as registry:
        agents = await spawn(platform, *(f"agent-{number}" for number in range(10)))
        await until_agents(platform, {"p-1": 10})
        agents += await spawn(platform, "the-eleventh")
        await until_agents(platform, {"p-1": 10, "p-2": 1})
        [counts] = [one for one in await store.agent_pools.counts() if one.pool.name == POOL]
        assert (counts.processes, counts.capacity, counts.agents, counts.placed) == (2, 20, 11, 11)
        await store.agents.terminate(platform.user.id, agents[-1].id)
        await until_agents(platform, {"p-1": 10})
    assert launcher.ended == ["p-2"]
    assert b"agent_pool_process_starts_total 2.0" in generate_latest(registry)


@pytest.mark.usefixtures("quick_looks")
async def test_agents_that_are_idle_sleep_and_their_process_ends(platform: Platform) -> None:
    launcher, store = EnteringLauncher(platform.resources), platform.resources.store
    async with looking_after(platform, launcher):
        [agent] = await spawn(platform, "one")
        await until_agents(platform, {"p-1": 1})
        await store.agent_pools.patch(POOL, {"sleep_after_seconds": 0})
        await until_agents(platform, {})
        await message(platform, agent)
        await until_agents(platform, {"p-2": 1})


@pytest.mark.usefixtures("quick_looks")
async def test_a_pool_that_nobody_uses_has_its_minimum_of_processes(platform: Platform) -> None:
    launcher = EnteringLauncher(platform.resources)
    async with looking_after(platform, launcher):
        await platform.resources.store.agent_pools.patch(POOL, {"min_processes": 2})
        await until_agents(platform, {"p-1": 0, "p-2": 0})
        await platform.resources.store.agent_pools.patch(POOL, {"min_processes": 0})
        await until_agents(platform, {})


@pytest.mark.usefixtures("quick_looks")
async def test_agents_of_a_lost_process_are_placed_elsewhere(platform: Platform) -> None:
    processes = platform.resources.store.agent_processes
    await processes.register("lost", POOL, node="a", ranges=None, capacity=10, lease_seconds=0.3)
    agents = await spawn(platform, "one", "two")
    assert {agent.process_id for agent in agents} == {"lost"}
    run = await message(platform, agents[0])
    await processes.register("other", POOL, node="b", ranges=None, capacity=10, lease_seconds=600)
    async with looking_after(platform, None) as registry:
        await until_agents(platform, {"other": 2})
    assert (await platform.run(run.id)).id == run.id
    assert b"agent_pool_process_losses_total 1.0" in generate_latest(registry)


async def test_somebody_who_finds_no_room_is_seen_at_once(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "AGENT_MANAGE_SECONDS", 600.0)
    monkeypatch.setattr(fixed, "AGENT_REPAIR_SECONDS", 600.0)
    async with looking_after(platform, EnteringLauncher(platform.resources)):
        await spawn(platform, "one")

        async def is_started() -> bool:
            # The loop may not have begun to listen; then it looks when it does.
            return bool(await places(platform))

        await wait_until(is_started)


@pytest.mark.usefixtures("quick_looks")
async def test_a_launcher_that_cannot_start_anything_is_logged_once(platform: Platform) -> None:
    launcher = EnteringLauncher(platform.resources)
    launcher.refuses = True
    with capture_logs() as logs:
        async with looking_after(platform, launcher):
            await spawn(platform, "one")
            await wait_until(lambda: launcher.refused > 3)
    warnings = [line["error"] for line in logs if line["log_level"] == "warning"]
    assert warnings == ["no room on this machine"]
    assert not [line for line in logs if line["event"] == "a pool gets processes"]


@pytest.mark.usefixtures("quick_looks")
async def test_why_a_pool_has_too_few_processes_is_written_until_it_has_enough(platform: Platform) -> None:
    launcher, registry = EnteringLauncher(platform.resources), platform.resources.agent_registry

    async def written() -> dict[str, str]:
        return await registry.shortages()

    launcher.refuses = True
    async with looking_after(platform, launcher):
        await spawn(platform, "one")
        assert await wait_until(written) == {POOL: "no room on this machine"}
        launcher.refuses = False
        await until_agents(platform, {"p-1": 1})
        await wait_until(lambda: _is_empty(registry.shortages()))


@pytest.mark.usefixtures("quick_looks")
async def test_what_keeps_processes_from_coming_is_asked_once_they_are_late(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "AGENT_START_SECONDS", 0.2)
    launcher, registry = EnteringLauncher(platform.resources), platform.resources.agent_registry
    launcher.hindered = "pod a has no node"
    async with looking_after(platform, launcher):
        await spawn(platform, "one")
        assert await wait_until(registry.shortages) == {POOL: "pod a has no node"}
        launcher.hindered = None
        await wait_until(lambda: _is_empty(registry.shortages()))


async def _is_empty(shortages: Awaitable[dict[str, str]]) -> bool:
    return not await shortages


@pytest.mark.usefixtures("quick_looks")
async def test_of_two_loops_one_starts_processes(platform: Platform) -> None:
    one, other = EnteringLauncher(platform.resources), EnteringLauncher(platform.resources)
    async with looking_after(platform, one), looking_after(platform, other):
        await spawn(platform, "one")
        await until_agents(platform, {"p-1": 1})
    assert one.started + other.started == 1


# --- children ---


async def test_children_that_have_not_entered_themselves_are_coming_and_lost_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(children, "python_module", lambda *_: ["sleep", "600"])
    now, host = datetime.now(UTC), socket.gethostname()
    pool = Pool(POOL, "developer", now)
    launcher = ChildLauncher(grace_seconds=1.0, logs=tmp_path, variables={})
    try:
        await launcher.start(pool, 2, 2)
        one, _ = launcher.pids[POOL]
        entered = PoolProcess(f"{host}-{one}-ab", POOL, host, 10, now, now, now)
        assert await launcher.coming(POOL, []) == 2
        assert await launcher.coming(POOL, [entered]) == 1
        assert await launcher.coming(POOL, []) == 1
        assert await launcher.coming("another", []) == 0
    finally:
        await launcher.close()


async def test_a_child_that_does_not_enter_itself_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(children, "python_module", lambda *_: ["sleep", "600"])
    monkeypatch.setattr(children, "ENTER_SECONDS", 0.0)
    launcher = ChildLauncher(grace_seconds=1.0, logs=tmp_path, variables={})
    with capture_logs() as logs:
        try:
            await launcher.start(Pool(POOL, "developer", datetime.now(UTC)), 1, 1)
            for _ in range(3):
                assert await launcher.coming(POOL, []) == 1
        finally:
            await launcher.close()
    late = [line for line in logs if line["event"] == "a process of a pool was started and takes no agents yet"]
    assert [line["pid"] for line in late] == [line["pid"] for line in logs if "pid" in line][:1]


def child_launcher(platform: Platform, logs: Path) -> ChildLauncher:
    variables = {**environment_of(platform.settings), "TMPDIR": str(platform.scratch)}
    return ChildLauncher(grace_seconds=1.0, logs=logs, variables=variables)


@pytest.mark.slow
async def test_processes_of_a_pool_are_started_as_children_and_end_with_the_loop(
    platform: Platform, tmp_path: Path
) -> None:
    launcher = child_launcher(platform, tmp_path)
    try:
        async with looking_after(platform, launcher):
            [agent] = await spawn(platform, "one")
            run = await message(platform, agent)
            await platform.until(run.id, *OVER)
            [pid] = launcher.pids[POOL]
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            again = await message(platform, agent)
            await platform.until(again.id, *OVER)
            assert time.monotonic() - killed_at < 30.0
            assert launcher.pids[POOL] != [pid]
    finally:
        await launcher.close()
    assert launcher.pids == {}
    assert await places(platform) == {}
    assert (tmp_path / f"pool-{POOL}.log").stat().st_size > 0


@pytest.mark.slow
async def test_a_process_that_ends_soon_after_its_start_is_not_started_without_end(
    start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = await start_platform(handlers_file=str(tmp_path / "missing.py"))
    launcher = child_launcher(platform, tmp_path)
    with capture_logs() as logs:
        try:
            async with looking_after(platform, launcher):
                await spawn(platform, "one")
                await wait_until(
                    lambda: any("ended soon after its start" in line.get("error", "") for line in logs), LONG_SECONDS
                )
        finally:
            await launcher.close()
    assert sum(line["event"] == "a process of a pool is started" for line in logs) <= 3
