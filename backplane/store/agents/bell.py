"""Calls processes whose agents have changed, after the commit that changed them.

A process reads which agents it has at each heartbeat; to be called spares the wait. Who carries the call is decided
where the parts are put together (`backplane.resources`): without anybody, nobody is called.
"""

from collections.abc import Awaitable, Callable

Ring = Callable[[str, str], Awaitable[None]]
"""Takes a pool, and the id of the process that is called; empty: all of the pool, and whoever starts processes. Never
raises Unavailable."""


class PlaceBell:
    def __init__(self) -> None:
        self._ring: Ring | None = None

    def rings(self, ring: Ring) -> None:
        self._ring = ring

    async def ring(self, pool: str, process_id: str = "") -> None:
        if self._ring is not None:
            await self._ring(pool, process_id)
