"""Waits for the first thing that ends a command on this machine: for every sandbox whose folder is here."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from worker.sandbox.base import Ending, Limits
from worker.sandbox.local.pipes import OutputPipe
from worker.sandbox.local.process import KILLED

End = tuple[Ending, int, str]
"""How it ended, its exit code, and a detail for people."""


async def first_end(
    own: Coroutine[Any, Any, End], disk_is_full: Coroutine[Any, Any, str], limits: Limits, out: OutputPipe
) -> End:
    """The command's own end, a full folder or disk, a sink that raises, or the end of its time. Raises what `own`
    raises."""
    exited = asyncio.create_task(own)
    full = asyncio.create_task(disk_is_full)
    first: set[asyncio.Future[Any]] = {exited, full, out.broken}
    try:
        await asyncio.wait(first, timeout=limits.wall_seconds, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return exited.result()
        if full.done():
            return Ending.DISK, KILLED, full.result()
        return Ending.TIMEOUT, KILLED, f"it ran longer than {limits.wall_seconds:g} seconds"
    finally:
        exited.cancel()
        full.cancel()
        await asyncio.gather(exited, full, return_exceptions=True)
