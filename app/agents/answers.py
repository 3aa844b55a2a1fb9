"""Waiting for the end of a message's run, for a caller that wants the answer in the same call."""

import asyncio
from contextlib import suppress

from starlette.types import Scope

from app.auth import Access
from app.edge.turns import give_back
from app.streams.buffer import Watched, Watcher
from app.streams.hub import Hub
from backplane.domain.runs import FINAL, Run, RunStatus
from backplane.store import Store


async def answered(hub: Hub, store: Store, access: Access, scope: Scope, run: Run, seconds: float) -> Run:
    """The run as it is when it is over, or when the time is up, or when the client or the API goes. `scope` is the
    request's, whose turn ends here. A caller that waits counts as a stream. Raises Unavailable, TooManyStreams."""
    if run.status in FINAL or not seconds:
        return run
    give_back(scope)
    watched = await hub.open(access.user, run.id, is_queued=run.status is RunStatus.QUEUED)
    watcher = Watcher(access)
    with watched.watched(), hub.watching(watcher), suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                epoch, cursor = watched.epoch, watched.newest
                run = await store.runs.get(access.user.id, run.id)
                if run.status in FINAL or not await _may_be_over(watched, epoch, cursor, watcher):
                    break
    return run


async def _may_be_over(watched: Watched[int], epoch: int, cursor: int, watcher: Watcher) -> bool:
    """Wait until it has an `end`, or may have one that was missed. False: nobody waits any more."""
    while watched.epoch == epoch:
        if watched.swept or watcher.end_reason is not None:
            return False
        span = watched.after(cursor)
        if span is None or span.is_end:
            return True
        cursor = span.cursor
        if not span.chunks:
            await watched.wait(watcher)
    return True
