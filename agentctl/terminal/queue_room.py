"""Waiting until a full queue has room for a run.

The API says when it expects room (`Retry-After`); this comes back then, and says once why nothing happens.
"""

import asyncio
from collections.abc import Awaitable, Callable

from agentctl.api.api_error import ApiError, JsonObject
from agentctl.terminal.output import Output

LONGEST_WAIT_SECONDS = 600.0
"""The longest time to wait in all, in seconds."""


async def once_there_is_room(
    output: Output, start: Callable[[], Awaitable[JsonObject]], seconds: float = LONGEST_WAIT_SECONDS
) -> JsonObject:
    """What `start` gives, once the queue takes it. Raises ApiError when that would take longer than `seconds`."""
    was_noted = False
    while True:
        try:
            return await start()
        except ApiError as error:
            pause = max(error.retry_after, 1.0)
            if not error.is_for_want_of_room or pause > seconds:
                raise
            if not was_noted:
                output.note(f"{error.detail}. Waiting for room (--no-wait does not; Ctrl-C gives up).")
            was_noted, seconds = True, seconds - pause
        await asyncio.sleep(pause)
