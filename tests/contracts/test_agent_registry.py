"""The registry of agents: a copy for operators that comes back by itself, and the channel of the pools."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from backplane.agents.base import DRAIN, LOOK, PoolCommand
from backplane.agents.redis import RedisAgentRegistry
from backplane.domain.agents import Agent, PoolProcess
from backplane.errors import Unavailable
from backplane.redis.client import RedisClients
from tests.waiting import wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROCESS = PoolProcess("node-1-7-ab", "devs", "node-1", 10, NOW, NOW, NOW)
OTHER = replace(PROCESS, id="node-1-8-cd")


def agent(number: int, process: PoolProcess = PROCESS) -> Agent:
    return Agent(f"id-{number}", "ada", "devs", f"name-{number}", number, NOW, NOW, process_id=process.id)


@pytest.fixture
def registry(clients: RedisClients) -> RedisAgentRegistry:
    return RedisAgentRegistry(clients, keep_seconds=300)


async def listed(clients: RedisClients) -> tuple[set[str], dict[str, float]]:
    """The ids in the two lists of the pool, those of processes with their free places."""
    keys = clients.keys
    commands = cast(Any, clients.commands)
    agents = await commands.smembers(keys.pool_agents("devs"))
    return set(agents), dict(await commands.zrange(keys.pool_processes("devs"), 0, -1, withscores=True))


async def test_operators_see_a_process_and_its_agents(registry: RedisAgentRegistry, clients: RedisClients) -> None:
    await registry.write(PROCESS, [agent(1), agent(2)])
    assert await listed(clients) == ({"id-1", "id-2"}, {PROCESS.id: 8})
    process = await cast(Any, clients.commands).hgetall(clients.keys.agent_process(PROCESS.id))
    assert {name: process[name] for name in ("pool", "node", "status", "capacity", "agents", "free")} == {
        "pool": "devs",
        "node": "node-1",
        "status": "active",
        "capacity": "10",
        "agents": "2",
        "free": "8",
    }
    assert abs(datetime.fromisoformat(process["last_heartbeat"]) - datetime.now(UTC)).total_seconds() < 60
    one = await clients.commands.hgetall(clients.keys.agent("id-2"))
    assert (one["id"], one["name"], one["number"], one["process_id"]) == ("id-2", "name-2", "2", PROCESS.id)


async def test_what_is_silent_goes_after_five_minutes(registry: RedisAgentRegistry, clients: RedisClients) -> None:
    await registry.write(PROCESS, [agent(1)])
    for key in (clients.keys.agent_process(PROCESS.id), clients.keys.agent("id-1")):
        assert 290 < await clients.commands.ttl(key) <= 300


async def test_the_lists_lose_what_is_gone_when_they_are_tidied(
    registry: RedisAgentRegistry, clients: RedisClients
) -> None:
    await registry.write(PROCESS, [agent(1), agent(2)])
    await registry.write(OTHER, [agent(3, OTHER)])
    await clients.commands.delete(clients.keys.agent_process(PROCESS.id), clients.keys.agent("id-1"))
    assert await registry.tidy("devs") == 2
    assert await listed(clients) == ({"id-2", "id-3"}, {OTHER.id: 9})
    assert await registry.tidy("devs") == 0


async def test_an_agent_that_has_left_is_taken_out_unless_another_process_has_it(
    registry: RedisAgentRegistry, clients: RedisClients
) -> None:
    await registry.write(PROCESS, [agent(1), agent(2), agent(3)])
    await registry.write(OTHER, [agent(2, OTHER)])
    await registry.write(PROCESS, [agent(1)], gone=["id-2", "id-3"])
    assert await listed(clients) == ({"id-1", "id-2"}, {PROCESS.id: 9, OTHER.id: 9})


async def test_nothing_is_left_of_a_process_that_ended(registry: RedisAgentRegistry, clients: RedisClients) -> None:
    await registry.write(PROCESS, [agent(1), agent(2)])
    await registry.remove(PROCESS, ["id-1", "id-2"])
    assert [key async for key in clients.commands.scan_iter("*")] == []


async def test_a_lost_process_is_shown_as_lost_without_a_free_place(
    registry: RedisAgentRegistry, clients: RedisClients
) -> None:
    await registry.write(PROCESS, [])
    await registry.mark_lost(PROCESS)
    await registry.mark_lost(OTHER)
    assert await listed(clients) == (set(), {PROCESS.id: 0})
    assert await clients.commands.hget(clients.keys.agent_process(PROCESS.id), "status") == "lost"
    assert 0 < await clients.commands.ttl(clients.keys.agent_process(PROCESS.id)) <= 300
    assert not await registry.is_known(OTHER.id)


async def test_a_process_is_known_until_redis_is_emptied(registry: RedisAgentRegistry, clients: RedisClients) -> None:
    await registry.write(PROCESS, [])
    assert await registry.is_known(PROCESS.id)
    await clients.commands.flushall()
    assert not await registry.is_known(PROCESS.id)


async def collect(commands: AsyncIterator[PoolCommand], found: list[PoolCommand]) -> None:
    async for command in commands:
        found.append(command)


@pytest.mark.connection
@pytest.mark.parametrize("listens_to", ["devs", "*"])
async def test_commands_reach_those_who_listen(
    registry: RedisAgentRegistry, clients: RedisClients, listens_to: str
) -> None:
    found: list[PoolCommand] = []
    async with registry.commands(listens_to) as commands:
        listening = asyncio.create_task(collect(commands, found))
        try:
            await wait_until(lambda: found == [PoolCommand(LOOK)], what="whoever begins to listen looks")
            await registry.ring("devs", "one")
            await registry.ring("devs", command=DRAIN)
            await clients.commands.publish(clients.keys.pool_commands("devs"), "no JSON")
            await wait_until(lambda: len(found) == 4)
        finally:
            listening.cancel()
            await asyncio.wait({listening})
    assert found[1:] == [PoolCommand(LOOK, "one"), PoolCommand(DRAIN), PoolCommand(LOOK)]
    assert (found[1].is_for("one"), found[1].is_for("two"), found[2].is_for("two")) == (True, False, True)


async def test_a_call_that_redis_does_not_take_harms_nobody() -> None:
    clients = RedisClients("redis://127.0.0.1:1/0")
    registry = RedisAgentRegistry(clients, keep_seconds=300)
    await registry.ring("devs", "one")
    with pytest.raises(Unavailable):
        await registry.write(PROCESS, [])
    await clients.close()


async def test_a_key_of_another_type_under_a_name_of_the_registry_gives_way(
    registry: RedisAgentRegistry, clients: RedisClients
) -> None:
    keys, commands = clients.keys, cast(Any, clients.commands)
    names = (
        keys.pool_agents("devs"),
        keys.pool_processes("devs"),
        keys.agent_process(PROCESS.id),
        keys.agent("id-1"),
    )
    others = (
        lambda key: commands.set(key, "x"),
        lambda key: commands.rpush(key, "x"),
        lambda key: commands.hset(key, "process_id", "x"),
        lambda key: commands.sadd(key, "x"),
        lambda key: commands.zadd(key, {"x": 1}),
    )
    for key in names:
        for make in others:

            async def spoil(key: str = key, make: Any = make) -> None:
                await commands.delete(key)
                await make(key)

            await spoil()
            await registry.write(PROCESS, [agent(1)])
            assert "id-1" in (await listed(clients))[0]
            await spoil()
            await registry.tidy("devs")
            await registry.write(PROCESS, [], gone=["id-1"])
            await spoil()
            await registry.remove(PROCESS, ["id-1"])


@pytest.mark.connection
@pytest.mark.parametrize("what", [b"\xff\xfe", b"[" * 200_000, b"1e400", b"9" * 10_000, b"null", b"\0"])
async def test_what_nobody_can_read_on_the_channel_of_a_pool_is_a_call_to_look(
    registry: RedisAgentRegistry, clients: RedisClients, what: bytes
) -> None:
    async with registry.commands("devs") as commands:
        assert await anext(commands) == PoolCommand(LOOK)
        await clients.commands.publish(clients.keys.pool_commands("devs"), what)
        assert await anext(commands) == PoolCommand(LOOK)
        await registry.ring("devs", PROCESS.id, DRAIN)
        assert await anext(commands) == PoolCommand(DRAIN, PROCESS.id)


async def test_the_shortages_of_pools_are_those_that_were_written_last(
    registry: RedisAgentRegistry, clients: RedisClients
) -> None:
    assert await registry.shortages() == {}
    await registry.write_shortages({"devs": "no image", "testers": "no room"}, keep_seconds=30)
    await registry.write_shortages({"devs": "no node"}, keep_seconds=30)
    assert await registry.shortages() == {"devs": "no node"}
    assert 0 < await clients.commands.ttl(clients.keys.pool_shortages) <= 30
    await registry.write_shortages({}, keep_seconds=30)
    assert await registry.shortages() == {}
    await clients.commands.set(clients.keys.pool_shortages, "a key of another type")
    assert await registry.shortages() == {}
    await registry.write_shortages({"devs": "no image"}, keep_seconds=30)
    assert await registry.shortages() == {"devs": "no image"}
