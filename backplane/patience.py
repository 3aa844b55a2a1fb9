"""Trying again while a part does not answer: the pauses grow to a few seconds, and each failure is told."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from backplane.errors import Unavailable

Result = TypeVar("Result")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: doubling, with jitter, without end."""
    span = FIRST_PAUSE_SECONDS
    while True:
        yield span * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        span = min(span * 2, LONGEST_PAUSE_SECONDS)


async def until_available(call: Callable[[], Awaitable[Result]], tell: Callable[[Unavailable, float], None]) -> Result:
    """What `call` gives once it no longer raises Unavailable. `tell` gets each error and the pause after it.

    The call must be safe to repeat. It ends only by success, another error, or cancellation.
    """
    for pause in pauses():
        try:
            return await call()
        except Unavailable as error:
            tell(error, pause)
            await asyncio.sleep(pause)
    raise AssertionError("pauses never end")
