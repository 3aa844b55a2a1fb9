"""A lease in Redis: it chooses for a time one of several processes for work that one alone should do.

It prevents in most cases, and not in all, that work is done twice: Redis may be emptied, and a process may be stopped
for longer than its lease. So the work must be safe to do twice.
"""

import time
from pathlib import Path

from backplane.redis.client import RedisClients, Script

LUA = Path(__file__).parent / "lua"


class RedisLease:
    """`key` is the lease, `owner` a name that no other process has; times in seconds."""

    def __init__(self, clients: RedisClients, key: str, owner: str, *, seconds: float) -> None:
        self._key = key
        self._owner = owner
        self._seconds = seconds
        self._hold, self._give_up = (Script(clients, LUA / f"{name}.lua") for name in ("hold", "give_up"))
        self._ends = 0.0

    @property
    def seconds(self) -> float:
        return self._seconds

    @property
    def is_over(self) -> bool:
        """Whether the lease may have ended by now, by this process's own clock. It is true also when this process never
        had it."""
        return time.monotonic() >= self._ends

    async def hold(self) -> bool:
        """Take the lease, or renew it. Returns whether this process has it now. Raises Unavailable, which leaves it as
        it was."""
        asked = time.monotonic()
        held = bool(await self._hold([self._key], [self._owner, int(self._seconds * 1000)]))
        self._ends = asked + self._seconds if held else 0.0
        return held

    async def give_up(self) -> None:
        """Give the lease up, so that another process can have it at once. Raises Unavailable; then it ends by
        itself."""
        self._ends = 0.0
        await self._give_up([self._key], [self._owner])
