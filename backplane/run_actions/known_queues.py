"""Which queues a new run may name: the default one, those that the operator has named (QUEUES), and those that a live
worker serves. So a name that is misspelt is refused, and there are never more queues than operators have made.

What live workers serve may be some seconds old; it is looked up anew before a name is refused. While Redis is away no
name is refused: the run is kept in the database, and waits until a worker serves its queue.
"""

import time
from collections.abc import Iterable

from backplane.domain.runs import DEFAULT_QUEUE
from backplane.errors import Unavailable
from backplane.queue.base import Queue

LOOKED_UP_SECONDS = 5.0


class KnownQueues:
    """`named`: those that the operator has named."""

    def __init__(self, queue: Queue, named: Iterable[str]) -> None:
        self._queue = queue
        self._named = frozenset(named)
        self._served: frozenset[str] = frozenset()
        self._looked_up_at = float("-inf")

    async def has_others(self) -> bool:
        """Whether there are queues beside the default one, as far as it is known."""
        if not self._named - {DEFAULT_QUEUE} and time.monotonic() - self._looked_up_at >= LOOKED_UP_SECONDS:
            await self._look_up()
        return bool((self._named | self._served) - {DEFAULT_QUEUE})

    async def missing(self, queue: str) -> tuple[str, ...] | None:
        """The queues that there are, when this one is none of them; else None."""
        if queue == DEFAULT_QUEUE or queue in self._named:
            return None
        if not await self._look_up() or queue in self._served:
            return None
        return tuple(sorted({DEFAULT_QUEUE} | self._named | self._served))

    async def _look_up(self) -> bool:
        """Whether Redis answered."""
        self._looked_up_at = time.monotonic()
        try:
            self._served = await self._queue.served()
        except Unavailable:
            return False
        return True
