"""The registry of agents in Redis: a hash for each agent that has a process and for each process, two lists a pool.

`redis-cli HGETALL agent:{id}`, `HGETALL process:{id}`, `SMEMBERS pool:{name}:agents`, and
`ZREVRANGE pool:{name}:processes 0 -1 WITHSCORES` (the emptiest process first). Hashes of what is silent go by their
lifetime; the lists are tidied by the manager of the pools.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import structlog

from backplane.agents.base import LOOK, AgentRegistry, PoolCommand
from backplane.domain.agents import Agent, PoolProcess
from backplane.errors import Unavailable
from backplane.redis.client import Argument, RedisClients, Script, translated

LUA = Path(__file__).parent / "lua"
RING_SECONDS = 1.0
"""How long a command may take to be published: whoever sends a message to an agent waits for it."""
PAGE = 1000
LOST = "lost"

log = structlog.get_logger()


class RedisAgentRegistry(AgentRegistry):
    """`keep_seconds`: how long what is silent stays."""

    def __init__(self, clients: RedisClients, *, keep_seconds: float) -> None:
        self._clients = clients
        self._redis = clients.commands
        self._keys = clients.keys
        self._keep = int(keep_seconds)
        self._write, self._tidy = (
            Script(clients, LUA / f"{name}.lua", prelude=LUA / "own_type.lua") for name in ("write", "tidy")
        )

    async def ring(self, pool: str, process_id: str = "", command: str = LOOK) -> None:
        message = json.dumps({"command": command, "process": process_id})
        try:
            with translated():
                async with asyncio.timeout(RING_SECONDS):
                    await self._redis.publish(self._keys.pool_commands(pool), message)
        except (Unavailable, TimeoutError) as error:
            reason = str(error) or "Redis does not answer"
            log.warning("a process is not called; it finds its agents at its next heartbeat", error=reason)

    @asynccontextmanager
    async def commands(self, pool: str) -> AsyncIterator[AsyncIterator[PoolCommand]]:
        channel = self._keys.pool_commands(pool)
        async with self._clients.pubsub() as pubsub:

            async def published() -> AsyncIterator[PoolCommand]:
                while True:
                    with suppress(Unavailable), translated():
                        await (pubsub.psubscribe(channel) if pool == "*" else pubsub.subscribe(channel))
                        async for message in pubsub.listen():
                            yield _command(message)
                    await asyncio.sleep(1)

            yield published()

    async def write(self, process: PoolProcess, agents: Sequence[Agent], *, gone: Sequence[str] = ()) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        free = max(process.capacity - len(agents), 0)
        fields = {
            "id": process.id,
            "pool": process.pool,
            "node": process.node,
            "status": "active" if process.draining_since is None else "draining",
            "capacity": process.capacity,
            "agents": len(agents),
            "free": free,
            "ranges": process.ranges or "",
            "started_at": process.started_at.isoformat(timespec="milliseconds"),
            "last_heartbeat": now,
        }
        await self._written(process, fields, free, [_of_agent(agent, process.id, now) for agent in agents], gone)

    async def is_known(self, process_id: str) -> bool:
        with translated():
            return bool(await self._redis.exists(self._keys.agent_process(process_id)))

    async def mark_lost(self, process: PoolProcess) -> None:
        key = self._keys.agent_process(process.id)
        with translated():
            if not await self._redis.exists(key):
                return
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(key, mapping={"status": LOST, "free": 0})
                pipeline.zadd(self._keys.pool_processes(process.pool), {process.id: 0}, xx=True)
                await pipeline.execute()

    async def remove(self, process: PoolProcess, agents: Sequence[str]) -> None:
        await self._written(process, {}, 0, [], agents)

    async def _written(
        self, process: PoolProcess, fields: dict[str, Any], free: int, agents: list[list[Any]], gone: Sequence[str]
    ) -> None:
        keys = self._keys
        names = [keys.agent_process(process.id), keys.pool_agents(process.pool), keys.pool_processes(process.pool)]
        flat = [part for field in fields.items() for part in field]
        arguments: list[Argument] = [
            process.id,
            json.dumps(flat),
            free,
            json.dumps(agents),
            json.dumps(list(gone)),
            self._keep,
        ]
        await self._write([*names, keys.agent("")], arguments)

    async def tidy(self, pool: str) -> int:
        keys, out, cursor = self._keys, 0, "0"
        names = [keys.pool_agents(pool), keys.pool_processes(pool), keys.agent(""), keys.agent_process("")]
        while True:
            cursor, gone = await self._tidy(names, [cursor, PAGE])
            out += int(gone)
            if cursor == "0":
                return out

    async def write_shortages(self, shortages: Mapping[str, str], *, keep_seconds: int) -> None:
        key = self._keys.pool_shortages
        with translated():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(key)
                if shortages:
                    pipeline.hset(key, mapping=cast(Any, shortages))
                    pipeline.expire(key, keep_seconds)
                await pipeline.execute()

    async def shortages(self) -> dict[str, str]:
        key = self._keys.pool_shortages
        with translated():
            found = await self._redis.hgetall(key) if await self._redis.type(key) == "hash" else {}
        return {str(pool): str(why) for pool, why in found.items()}


def _of_agent(agent: Agent, process_id: str, now: str) -> list[Any]:
    """The id, then names and values of the hash."""
    fields = {
        "pool": agent.pool,
        "name": agent.name,
        "number": agent.number,
        "user_id": agent.user_id,
        "process_id": process_id,
        "generation": agent.generation,
        "open_run_id": agent.open_run_id or "",
        "last_active_at": agent.last_active_at.isoformat(timespec="milliseconds"),
        "last_heartbeat": now,
    }
    return [agent.id, *(part for field in fields.items() for part in field)]


def _command(message: dict[str, Any]) -> PoolCommand:
    """What was published. When the channel is joined, anew perhaps, and for what nobody can read: look."""
    if message["type"] not in ("message", "pmessage"):
        return PoolCommand(LOOK)
    try:
        read = cast(dict[str, Any], json.loads(message["data"]))
        return PoolCommand(str(read.get("command") or LOOK), str(read.get("process") or ""))
    except (ValueError, AttributeError, RecursionError):
        return PoolCommand(LOOK)
