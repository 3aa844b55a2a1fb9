"""What can end a run's work from outside. When several causes come at once, the first one that was set counts.

Several pieces of work may run under one interruption at once, also one below another (an agent's step and the tool
calls in it). Each is guarded by itself, and waits for those below it whose changes are on their way.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from enum import StrEnum
from typing import TypeVar

Result = TypeVar("Result")

CHANGES_GRACE_SECONDS = 10.0
"""How long changes that are on their way into the workspace may still take."""


class Cause(StrEnum):
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    TIMED_OUT = "timed out"
    DRAINED = "drained"
    NOT_STORED = "not stored"
    """The database refuses what the run has published."""


class Interrupted(Exception):
    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


class _Guarded:
    """A piece of work, and how many in it (itself, those below it) have changes on their way."""

    def __init__(self, above: "_Guarded | None") -> None:
        self._above = above
        self._is_changing = False
        self.changing = 0

    def changes_begin(self) -> None:
        if not self._is_changing:
            self._is_changing = True
            self._count(1)

    def end(self) -> None:
        if self._is_changing:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.changing += change
        if self._above:
            self._above._count(change)


_guarded: ContextVar[_Guarded | None] = ContextVar("guarded work", default=None)


class Interruption:
    """Set once, from anywhere on the loop; then the work that runs under it ends by raising Interrupted."""

    def __init__(self) -> None:
        self.cause: Cause | None = None
        self._set = asyncio.Event()
        self._pause_over = asyncio.Event()
        self._draining = False

    def request_drain(self) -> None:
        """The worker drains: running work may go on until the next `check`."""
        self._draining = True
        self._pause_over.set()

    def set(self, cause: Cause) -> None:
        if self.cause is None:
            self.cause = cause
            self._set.set()
            self._pause_over.set()

    def check(self) -> None:
        if self.cause:
            raise Interrupted(self.cause)
        if self._draining:
            raise Interrupted(Cause.DRAINED)

    def changes_begin(self) -> None:
        """From here on the work is only cut off after a grace period: what it writes should become whole.

        Raises Interrupted when the work is interrupted already. A worker that drains lets it go on: it is running.
        """
        if self.cause:
            raise Interrupted(self.cause)
        if guarded := _guarded.get():
            guarded.changes_begin()

    async def pause(self, seconds: float) -> None:
        """Wait between two pieces of work. Nothing is running, so a drain ends the pause too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._pause_over.wait()
        self.check()

    async def guard(self, work: Awaitable[Result]) -> Result:
        """Do the work; when interrupted, cancel it, wait until it has ended, and raise Interrupted."""
        guarded = _Guarded(_guarded.get())
        token = _guarded.set(guarded)
        task, interrupted = asyncio.ensure_future(work), asyncio.ensure_future(self._set.wait())
        _guarded.reset(token)
        try:
            await asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and guarded.changing and self.cause is not Cause.SUPERSEDED:
                await asyncio.wait({task}, timeout=CHANGES_GRACE_SECONDS)
            if task.done():
                return task.result()
        finally:
            interrupted.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            guarded.end()
        self.check()
        raise AssertionError("the wait ended without a result and without a cause")
