"""Trying again while a part does not answer: the pauses grow to a few seconds, and each failure is logged.

A part that answers, and refuses (no right, no room), is waited for as well, for it may be mended at this moment, but
not for ever: while it is waited for, no error says to an operator what is wrong.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import structlog

from backplane.domain.retry import backoff
from backplane.errors import PartRefuses, Unavailable

Result = TypeVar("Result")
OnUnavailable = Callable[[Unavailable, float], None]
"""Called with each failure of a call, and the seconds until the call is made again."""

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0
FORGOTTEN_SECONDS = 600.0
"""A refusal that is older does not count any more. It is longer than most steps take, which are repeated as a whole."""


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: doubling, with jitter, without end."""
    for attempt in itertools.count(1):
        draw = random.random()  # noqa: S311 - jitter, no secret
        yield backoff(attempt, base=FIRST_PAUSE_SECONDS, longest=LONGEST_PAUSE_SECONDS, draw=draw)


class Refusals:
    """Since when a part has refused, without a success or another failure between. None: it may do so for ever.
    A refusal that is older than `FORGOTTEN_SECONDS` when a call begins does not count any more."""

    def __init__(self, most_seconds: float | None) -> None:
        self._most_seconds = most_seconds
        self._since: float | None = None
        self._last = 0.0

    def begins(self) -> None:
        """A call begins. A time without calls does not count as a time of refusals."""
        if self._since is not None and time.monotonic() - self._last >= FORGOTTEN_SECONDS:
            self._since = None

    def failed(self, error: Unavailable) -> None:
        """Raises PartRefuses when it has been refused for too long."""
        if not error.refuses or self._most_seconds is None:
            self._since = None
            return
        self._last = time.monotonic()
        if self._since is None:
            self._since = self._last
        if self._last - self._since >= self._most_seconds:
            raise PartRefuses(f"{error.message} It has refused for {self._most_seconds:g} s.") from error

    def succeeded(self) -> None:
        self._since = None


def log_unavailable(event: str, **context: object) -> OnUnavailable:
    """A callback that logs `event` with the part, the error and the pause. `context` is logged too, and may name the
    part otherwise."""

    def log_line(error: Unavailable, pause: float) -> None:
        log.warning(event, **{"part": error.part, **context}, error=error.message, pause=round(pause, 1))

    return log_line


_log_away = log_unavailable("a part is away")


@dataclass(frozen=True, slots=True)
class WaitRules:
    """How a part that is away is waited for: what is called after each failure, and for how long the part may refuse
    (None: for ever)."""

    on_unavailable: OnUnavailable = _log_away
    refused_seconds: float | None = None

    async def until_available(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """The result of `call` once the part answers. Raises PartRefuses when it has refused for too long."""
        return await until_available(call, self.on_unavailable, refused_seconds=self.refused_seconds)


async def until_available(
    call: Callable[[], Awaitable[Result]],
    on_unavailable: OnUnavailable = _log_away,
    *,
    refused_seconds: float | None = None,
) -> Result:
    """The result of `call` once it no longer raises Unavailable.

    The call must be safe to repeat. The wait ends only by success, by another error, or by cancellation; and by
    PartRefuses when the part has refused for `refused_seconds`, where these are given.
    """
    refusals, waits = Refusals(refused_seconds), pauses()
    while True:
        try:
            return await call()
        except Unavailable as error:
            refusals.failed(error)
            pause = next(waits)
            on_unavailable(error, pause)
            await asyncio.sleep(pause)
