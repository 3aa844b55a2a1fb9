"""Logs for the watchers of a run that its model call waits, once the wait is longer than a moment."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

MOMENT_SECONDS = 1.0
AGAIN_SECONDS = 15.0
"""A place in line changes often; it is logged no more often than this."""


class WaitNotice:
    """Use it in a `with` for the time of a wait. `log_line` is called with a line for the run's log."""

    def __init__(self, log_line: Callable[[str], None]) -> None:
        self._log_line = log_line
        self._line: Callable[[], str] = str
        self._logged_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def turn(self, server: str, position: int) -> None:
        self._log_soon(lambda: f"waiting for a turn at model server {server}, {position} in line")

    def tokens(self, seconds: float, reason: Callable[[], str]) -> None:
        """`reason` is asked for when it is published."""
        self._log_soon(lambda: f"waiting for model tokens, for {seconds:.0f} s yet: {reason()}")

    def _log_soon(self, line: Callable[[], str]) -> None:
        self._line = line
        if self._timer is None:
            since = time.monotonic() - self._logged_at if self._logged_at is not None else None
            pause = MOMENT_SECONDS if since is None else max(AGAIN_SECONDS - since, 0.0)
            self._timer = asyncio.get_running_loop().call_later(pause, self._now)

    def _now(self) -> None:
        self._timer = None
        self._logged_at = time.monotonic()
        self._log_line(self._line())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
