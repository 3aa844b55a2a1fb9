"""An answer that is the same for everybody and costs more than to send it: made once, for all who ask at that time.

It is made by a task of its own, so that a client that goes away takes nothing from the others. It keeps one answer, and
knows no user: what differs between users does not belong here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from backplane.process.tasks import end

Value = TypeVar("Value")


class KeptAnswer(Generic[Value]):
    """`seconds`: how long an answer is given again, from the moment when it was made. Errors are not kept."""

    def __init__(self, make: Callable[[], Awaitable[Value]], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._kept: tuple[float, Value] | None = None
        self._task: asyncio.Task[Value] | None = None

    async def get(self) -> Value:
        """Raises what `make` raises, to all who have waited for it."""
        if self._kept is not None and time.monotonic() < self._kept[0]:
            return self._kept[1]
        if self._task is None:
            self._task = asyncio.create_task(self._made(), name="an answer for all who ask")
            self._task.add_done_callback(self._is_over)
        return await asyncio.shield(self._task)

    async def _made(self) -> Value:
        value = await self._make()
        self._kept = (time.monotonic() + self._seconds, value)
        return value

    def _is_over(self, task: "asyncio.Task[Value]") -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # Else asyncio logs an error that nobody has waited for.

    async def close(self) -> None:
        if self._task is not None:
            await end(self._task)
