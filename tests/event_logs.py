"""A live wire as tests want it: with room for what they say, and with the runs that they name known to the queue."""

from typing import Any, cast

from backplane.logs.redis import RedisEventLog
from backplane.logs.rest import RestEventLog
from backplane.logs.room import LogLimits
from backplane.redis.client import RedisClients
from backplane.redis.rest import RestClients

MIB = 1024**2
LIMITS = LogLimits(run_bytes=4 * MIB, user_bytes=16 * MIB, all_bytes=0, run_events=10_000)


def redis_event_log(clients: RedisClients, *, limits: LogLimits = LIMITS, keep_seconds: int = 600) -> RedisEventLog:
    """By whichever way these clients go."""
    if isinstance(clients, RestClients):
        return RestEventLog(clients, limits=limits, keep_seconds=keep_seconds)
    return RedisEventLog(clients, limits=limits, keep_seconds=keep_seconds)


async def make_known(clients: RedisClients, *run_ids: str) -> None:
    """Make these runs known, as if they were running in generation 0; nobody waits for them, and they belong to no
    user."""
    for run_id in run_ids:
        await cast(Any, clients.commands.hset(clients.keys.job(run_id), "generation", "0"))
