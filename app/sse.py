"""Streams: subscribe, replay what is after the cursor, then live; each event once, in order.

The subscription stands before the history is read (`Hub`), so nothing can happen in between unheard. A watcher is a
cursor: it takes from the ring what comes next, and where the ring does not reach back to it, or the wire was cut, it
reads the history again. So a reader may be as slow as it likes; it costs a page of history, never a growing buffer, and
one that takes nothing for a minute is cut off.

A run's history is what the database has, then what the live wire still keeps. Numbers that are nowhere to be had are
told as a `gap`. After `end` the stream ends. The history of a user's feed is the database's alone (`app.feed`), and has
no end.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from app.hub import Hub, frame_of
from app.ring import Cursor, Span, Watched, Watcher, span_of
from backplane.errors import Unavailable
from backplane.events import Event, EventType, encode
from backplane.logs.base import EventLog
from backplane.patience import pauses
from backplane.store import Store

log = structlog.get_logger()

PAGE = 500
"""Events that are read at once, and the most that one call of the JSON log gives."""
COMMENT = b": nothing new\n\n"

ReadHistory = Callable[[Cursor], Awaitable[tuple[Span[Cursor], bool]]]
"""What is kept after the cursor, at most a page, and whether there may be more. Raises Unavailable."""


class History:
    """What is kept of a run: by the database, and for the newest part by the live wire."""

    def __init__(self, store: Store, event_log: EventLog) -> None:
        self._store = store
        self._event_log = event_log

    async def after(self, run_id: str, cursor: int) -> Sequence[Event]:
        """The next events over `cursor`, at most a page. Raises Unavailable when the database is away.

        The database lags behind the wire by the time of a batch, so where its part ends the wire's begins.
        """
        stored = await self._store.events.after(run_id, cursor, PAGE)
        if stored:
            return stored
        try:
            live = await self._event_log.after(run_id, cursor, PAGE)
        except Unavailable:
            return ()
        if live and live[0].id > cursor + 1:
            # The wire keeps the newest part only; what lies between may have been stored just now.
            return await self._store.events.after(run_id, cursor, PAGE) or live
        return live

    async def span(self, run_id: str, cursor: int) -> tuple[Span[int], bool]:
        """The same as frames, with gaps, and whether there may be more."""
        events = await self.after(run_id, cursor)
        frames = [frame_of(event) for event in _with_gaps(run_id, cursor, events)]
        return span_of(frames, events[-1].id if events else cursor), bool(events)

    async def last_id(self, run_id: str) -> int:
        """Of the last event that anybody can have seen."""
        stored = await self._store.events.last_id(run_id)
        try:
            return max(stored, await self._event_log.last_id(run_id) or 0)
        except Unavailable:
            return stored


async def stream(
    watched: Watched[Cursor], history: ReadHistory[Cursor], cursor: Cursor, watcher: Watcher, opening: bytes = b""
) -> AsyncIterator[bytes]:
    """Frames after `cursor` until an end, several in one chunk where several are there.

    Ends at once, so that the client connects again, when what it watches was swept before the stream began.
    """
    with watched.watched():
        if watched.swept:
            return
        if opening:
            yield opening
        told = 0
        waits = pauses()
        while True:
            epoch, before, ended, more = watched.epoch, cursor, False, True
            try:
                while more:
                    span, more = await history(cursor)
                    cursor = span.cursor
                    if span.body:
                        yield span.body
                        # A failed run that was tried again goes on after its first end, which may close a page.
                        ended = span.is_end
                if ended:
                    return
            except Unavailable:
                await asyncio.sleep(next(waits))
                if watcher.is_due:
                    yield COMMENT
                continue
            while watched.epoch == epoch:
                live = watched.after(cursor)
                if live is None:
                    break
                cursor = live.cursor
                if live.body:
                    yield live.body
                    waits = pauses()
                    if live.is_end:
                        return
                    continue
                notices, told = watched.notices_after(told)
                if notices or watcher.is_due:
                    yield notices or COMMENT
                else:
                    await watched.wait(watcher)
            if cursor == before and watched.epoch == epoch:
                # Told, but not to be read yet.
                await asyncio.sleep(next(waits))


class EventStream(EventSourceResponse):
    """Sends the chunks of `stream`. The hub looks after it: the library's own comments and time limits cost a task and
    a timer for each watcher and chunk."""

    def __init__(self, chunks: AsyncIterator[bytes], hub: Hub, watcher: Watcher) -> None:
        super().__init__(chunks, ping=0, sep="\n")
        self._hub = hub
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher, loop, task = self._watcher, asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        async def noted(message: Message) -> None:
            watcher.is_sending, watcher.sent_at = True, loop.time()
            await send(message)
            watcher.is_sending, watcher.is_due = False, False

        watcher.task = task
        with self._hub.watching(watcher):
            try:
                await super().__call__(scope, receive, noted)
            except asyncio.CancelledError:
                if not watcher.is_cut_off:
                    raise
                task.uncancel()
                log.warning("a reader took nothing for too long and is cut off", path=scope["path"])


def _with_gaps(run_id: str, cursor: int, events: Sequence[Event]) -> list[Event]:
    """The events, and where numbers are missing without a word a `gap` with the number before the next event."""
    whole: list[Event] = []
    for event in events:
        if event.id > cursor + 1 and event.type is not EventType.GAP:
            whole.append(gap(run_id, cursor, event.id, "not kept"))
        whole.append(event)
        cursor = event.id
    return whole


def gap(run_id: str, after: int, before: int, reason: str) -> Event:
    return encode(run_id, before - 1, EventType.GAP, {"after": after, "before": before, "reason": reason})
