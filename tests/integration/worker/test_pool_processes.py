"""Processes of pools: which agents they have, what becomes of these when one drains or is lost, and the registry."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agentctl.local.embedded import free_port
from backplane.agents.base import DRAIN
from backplane.domain.agents import Agent, Pool
from backplane.domain.runs import Run, RunStatus, new_run_id
from backplane.errors import NotFound
from backplane.run_actions.pushing import push_again
from backplane.settings import fixed
from tests.integration.worker.team import ROLES, Team
from tests.metrics import scrape
from tests.platform.workers import LONG_SECONDS, Platform, WorkerProcess
from tests.submitted import new_run
from tests.waiting import wait_until
from worker import service
from worker.pool.source import PoolSource
from worker.service import serve

POOL = "developer_pool"
StartPool = Callable[..., Awaitable[WorkerProcess]]
OVER = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


@asynccontextmanager
async def pool_process(platform: Platform, pool: str = POOL, **values: Any) -> AsyncIterator[asyncio.Event]:
    """A process of the pool on this loop; leaving the block, or setting what it gives, asks it to end."""
    stop, settings = asyncio.Event(), platform.settings.model_copy(update=values)
    before = {one.process.id for one in await platform.resources.store.agent_processes.all()}
    working = asyncio.create_task(serve(settings, stop, PoolSource(settings, pool)), name="pool process under test")

    async def entered() -> bool:
        if working.done():
            working.result()
        return any(one.process.id not in before for one in await platform.resources.store.agent_processes.all())

    try:
        await wait_until(entered)
        yield stop
    finally:
        stop.set()
        await working


async def spawn(platform: Platform, *names: str, pool: str = POOL) -> list[Agent]:
    store = platform.resources.store
    return [(await store.agents.spawn(platform.user.id, pool, name, most=1000))[0] for name in names]


async def message(platform: Platform, agent: Agent) -> Run:
    """Send the agent a message, as the API does."""
    resources = platform.resources
    run = new_run(platform.user, id=new_run_id(), agent_id=agent.id, agent=agent.memory_name, queue=agent.queue)
    added = await resources.store.agent_messages.add(run, mailbox_max=1000)
    if added.opened:
        await push_again(resources.store, resources.queue, resources.event_log, added.opened)
    return added.run


async def places(platform: Platform) -> dict[str, int]:
    """Agents by process."""
    return {one.process.id: one.agents for one in await platform.resources.store.agent_processes.all()}


async def until_places(platform: Platform, *agents: int) -> None:
    async def are_those() -> bool:
        return sorted((await places(platform)).values()) == sorted(agents)

    await wait_until(are_those, LONG_SECONDS)


async def test_a_process_takes_the_messages_of_its_agents(platform: Platform) -> None:
    async with pool_process(platform):
        one, two = await spawn(platform, "one", "two")
        runs = [await message(platform, agent) for agent in (one, two, one)]
        for run in runs:
            await platform.until(run.id, *OVER)
        assert await places(platform) != {}
    assert await places(platform) == {}


async def test_a_process_counts_the_turns_of_its_pool(platform: Platform) -> None:
    port = free_port()
    async with pool_process(platform, metrics_host="127.0.0.1", metrics_port=port):
        [agent] = await spawn(platform, "one")
        run = await message(platform, agent)
        await platform.until(run.id, *OVER)
        ended = (await platform.resources.store.runs.get(platform.user.id, run.id)).status
        of_pool = {"pool": POOL, "role": "developer"}

        async def counted() -> bool:
            return (await scrape(f"http://127.0.0.1:{port}")).value("agent_turn_seconds_count", **of_pool) == 1

        await wait_until(counted)
        found = await scrape(f"http://127.0.0.1:{port}")
    assert {status: found.value("agent_turns_total", status=status, **of_pool) for status in OVER} == {
        status: float(status is ended) for status in OVER
    }


async def test_messages_of_agents_that_have_no_process_wait_for_one(platform: Platform) -> None:
    [agent] = await spawn(platform, "one")
    run = await message(platform, agent)
    assert (await platform.run(run.id)).in_mailbox
    async with pool_process(platform):
        await platform.until(run.id, *OVER)


async def test_a_message_wakes_a_sleeping_agent_without_waiting_for_a_heartbeat(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for the next look at a queue: both come after the test has been given up. How soon it is is measured by
    `bench/agents.py`."""
    monkeypatch.setattr(service, "WAIT_SECONDS", 10 * LONG_SECONDS)
    store = platform.resources.store
    await store.agent_pools.patch(POOL, {"sleep_after_seconds": 0})
    async with pool_process(platform, heartbeat_seconds=10 * LONG_SECONDS, lease_seconds=30 * LONG_SECONDS):
        [agent] = await spawn(platform, "one")
        for _ in range(2):
            assert await store.agent_processes.put_to_sleep(POOL) == [agent.id]
            run = await message(platform, agent)
            await platform.until(run.id, *OVER)

            async def is_idle() -> bool:
                found = await store.agents.find(agent.id)
                return found is not None and found.open_run_id is None

            await wait_until(is_idle)


async def test_agents_of_a_process_that_drains_go_on_elsewhere(platform: Platform) -> None:
    async with pool_process(platform) as first_ends:
        agents = await spawn(platform, "one", "two")
        await until_places(platform, 2)
        async with pool_process(platform):
            first_ends.set()
            await until_places(platform, 2)
            for agent in agents:
                run = await message(platform, agent)
                await platform.until(run.id, *OVER)


async def test_a_process_that_is_called_to_drain_ends(platform: Platform) -> None:
    settings = platform.settings
    ending = asyncio.create_task(serve(settings, asyncio.Event(), PoolSource(settings, POOL)))
    await until_places(platform, 0)
    [process_id] = await places(platform)

    async def has_ended() -> bool:
        await platform.resources.agent_registry.ring(POOL, process_id, DRAIN)  # it may not listen yet
        return ending.done()

    await wait_until(has_ended, LONG_SECONDS)
    await ending
    assert await places(platform) == {}


async def test_a_process_that_the_database_lets_drain_ends_without_any_call(platform: Platform) -> None:
    settings = platform.settings
    ending = asyncio.create_task(serve(settings, asyncio.Event(), PoolSource(settings, POOL)))
    await until_places(platform, 0)
    [process_id] = await places(platform)
    await platform.resources.store.agent_processes.drain(process_id)
    async with asyncio.timeout(LONG_SECONDS):
        await ending


async def test_a_process_whose_row_is_gone_enters_itself_again(platform: Platform) -> None:
    async with pool_process(platform):
        [process_id] = await places(platform)
        await platform.resources.store.agent_processes.deregister(process_id)
        await until_places(platform, 0)
        [agent] = await spawn(platform, "one")
        run = await message(platform, agent)
        await platform.until(run.id, *OVER)


async def test_a_process_of_a_pool_that_there_is_not_says_so(platform: Platform) -> None:
    settings = platform.settings
    with pytest.raises(NotFound, match="no pool nobody"):
        await serve(settings, asyncio.Event(), PoolSource(settings, "nobody"))


async def test_what_operators_see_comes_back_when_redis_is_emptied(platform: Platform) -> None:
    redis = platform.resources.redis
    keys = redis.keys

    async def is_shown() -> bool:
        free = await redis.commands.zrange(keys.pool_processes(POOL), 0, -1, withscores=True)
        hashes = await redis.commands.exists(
            *(keys.agent(agent.id) for agent in agents), keys.agent_process(process_id)
        )
        names = {agent.id for agent in agents}
        return (
            free == [(process_id, 8.0)]
            and hashes == 3
            and await redis.commands.smembers(keys.pool_agents(POOL)) == names
        )

    async with pool_process(platform):
        [process_id] = await places(platform)
        agents = await spawn(platform, "one", "two")
        await wait_until(is_shown)
        await redis.commands.flushall()
        await wait_until(is_shown)
    assert [key async for key in redis.commands.scan_iter("pool:*")] == []


async def test_ranges_that_overlap_or_leave_numbers_out_are_logged_at_the_start(platform: Platform) -> None:
    store = platform.resources.store
    await spawn(platform, *(f"agent-{number}" for number in range(12)))
    await store.agent_processes.register("other", POOL, node="other-node", ranges="4-8", capacity=10, lease_seconds=600)
    with capture_logs() as logs:
        async with pool_process(platform, agent_range="1-5"):
            await wait_until(lambda: any(line["event"] == "worker ready" for line in logs))
    found = [line["numbers"] for line in logs if line["event"].startswith("AGENT_RANGE")]
    assert found == ["4-5", "9-12"]


async def test_a_process_takes_the_numbers_of_its_range_alone(platform: Platform) -> None:
    async with pool_process(platform, agent_range="2-3"):
        agents = await spawn(platform, "one", "two", "three", "four")
        assert [agent.process_id is not None for agent in agents] == [False, True, True, False]


# --- processes that are killed ---


@pytest.fixture
async def start_pool(platform: Platform) -> AsyncIterator[StartPool]:
    """Starts `python -m worker.pool`."""
    started: list[WorkerProcess] = []

    async def start(pool: str = POOL) -> WorkerProcess:
        settings = platform.settings.model_copy(update={"roles_dir": str(ROLES)})
        process = WorkerProcess(settings, platform.scratch, module="worker.pool", arguments=[pool])
        started.append(process)
        await process.start()
        return process

    yield start
    for process in started:
        await process.kill()


@pytest.mark.slow
async def test_agents_of_a_process_that_is_killed_are_placed_elsewhere_within_a_lease(
    platform: Platform, start_pool: StartPool
) -> None:
    killed = await start_pool()
    agents = await spawn(platform, "one", "two", "three")
    await start_pool()
    await killed.kill()
    killed_at = time.monotonic()
    await until_places(platform, 3)
    assert time.monotonic() - killed_at < platform.settings.lease_seconds + 10.0
    for agent in agents:
        run = await message(platform, agent)
        await platform.until(run.id, *OVER)


@pytest.mark.slow
async def test_a_process_that_was_frozen_for_longer_than_its_lease_works_again(
    platform: Platform, start_pool: StartPool
) -> None:
    frozen = await start_pool()
    [agent] = await spawn(platform, "one")
    frozen.signal(signal.SIGSTOP)
    run = await message(platform, agent)
    async with pool_process(platform):
        await platform.until(run.id, *OVER)
        frozen.signal(signal.SIGCONT)
        await until_places(platform, 0, 1)
        again = await message(platform, agent)
        await platform.until(again.id, *OVER)


@pytest.mark.slow
async def test_a_process_ends_by_a_signal_with_nothing_left(platform: Platform, start_pool: StartPool) -> None:
    process = await start_pool()
    await spawn(platform, "one")
    process.signal(signal.SIGTERM)
    assert await process.ended() == os.EX_OK
    assert await places(platform) == {}


async def test_a_process_of_many_agents_carries_out_a_bounded_number_of_turns_at_once(platform: Platform) -> None:
    await platform.resources.store.agent_pools.put(Pool("large_pool", "developer", datetime.now(UTC), 1000))
    with capture_logs() as logs:
        async with pool_process(platform, "large_pool"):
            [process] = [one.process for one in await platform.resources.store.agent_processes.all()]
            # It enters itself in the database before it is ready.
            [ready] = await wait_until(lambda: [line for line in logs if line["event"] == "worker ready"])
    assert process.capacity == 1000
    assert ready["slots"] == fixed.AGENT_TURNS_AT_ONCE


@pytest.mark.slow
async def test_a_turn_that_blocks_for_three_leases_costs_no_other_agent_its_turn_or_its_place(
    platform: Platform, start_pool: StartPool, tmp_path: Path
) -> None:
    """The leases are a second long, and another process of the pool waits for agents and for runs."""
    resources, pool, marks = platform.resources, "scripted_pool", tmp_path / "marks"
    await resources.store.agent_pools.put(Pool(pool, "scripted", datetime.now(UTC)))
    await start_pool(pool)
    team = Team(platform, {agent.name: agent for agent in await spawn(platform, "ada", "bob", "eve", pool=pool)})
    [before] = (await places(platform)).items()
    await start_pool(pool)
    turns = [await team.sent(name, data={"do": "slowly", "marks": str(marks)}) for name in ("bob", "eve")]
    await wait_until(lambda: marks.exists() and marks.read_text().count("begun") == len(turns), LONG_SECONDS)
    blocking = await team.sent("ada", data={"do": "block", "seconds": 3.2})
    for run_id in (blocking, *turns):
        run = await team.ended(run_id)
        assert (run.status, run.generation, run.attempt) == (RunStatus.COMPLETED, 1, 1)
        await platform.ends_whole(run_id)
    assert sorted(marks.read_text().split()) == ["begun"] * len(turns) + ["done"] * len(turns)
    assert before in (await places(platform)).items()
    assert {
        (await resources.store.agents.get(platform.user.id, one.id)).generation for one in team.agents.values()
    } == {1}
