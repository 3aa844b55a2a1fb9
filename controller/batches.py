"""Work in batches, for as long as the controller runs: at once while there may be more, else after a pause."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from backplane.errors import Unavailable
from backplane.process.retrying import pauses

log = structlog.get_logger()


async def repeat_batches(work: Callable[[], Awaitable[bool]], *, what: str, pause_seconds: float) -> None:
    """`work` does one batch and returns whether there may be more. While a part is away it is tried again; `what` names
    it in the log then."""
    waits = pauses()
    while True:
        try:
            is_more = await work()
            waits = pauses()
        except Unavailable as error:
            pause = next(waits)
            log.warning(f"cannot look after {what}", error=error.message, pause=round(pause, 1))
            await asyncio.sleep(pause)
            continue
        if not is_more:
            await asyncio.sleep(pause_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
