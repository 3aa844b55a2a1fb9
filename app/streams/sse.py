"""Streams: subscribe, replay what is after the cursor, then live; each event once, in order.

The hub subscribes before the history is read, so no event falls in between. A watcher is a cursor: it takes from the
event buffer what comes next. Where the buffer does not reach back to the cursor, or the connection to Redis was lost,
the watcher reads the history again. So a reader may be slow; it costs a page of history, never a growing buffer. One
that reads nothing for a minute is disconnected.

A run's history is what the database has, then what Redis still keeps. A `gap` event stands for numbers that neither
has. After `end` the stream ends. The history of a user's feed is in the database alone (`app.streams.feed`), and the
feed has no end.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic

import structlog
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.streams.buffer import Cursor, Span, StreamEnd, Watched, Watcher, span_of
from app.streams.hub import Hub, frame_of
from backplane.domain.events import Event, EventType, encode
from backplane.errors import Unavailable
from backplane.logs.base import EventLog
from backplane.process.retrying import pauses
from backplane.process.tasks import end
from backplane.store import Store

log = structlog.get_logger()

PAGE = 500
"""Events that are read at once, and the most that one call of the JSON log gives."""
CATCH_UP_LOOKS, CATCH_UP_PAUSE_SECONDS = 20, 0.1
COMMENT = b": nothing new\n\n"
REVOKED = b": this stream ends: its token was revoked, or its user has another tier now\n\n"

ReadHistory = Callable[[Cursor], Awaitable[tuple[Span[Cursor], bool]]]
"""What is kept after the cursor, at most a page, and whether there may be more. Raises Unavailable."""


def described(description: str, *, id_example: str) -> dict[str, Any]:
    """The OpenAPI entry of a stream. `itemSchema` describes one frame, as OpenAPI 3.2 has it. `schema` says nothing: it
    would be the whole stream's, and clients that are generated from a frame's schema read the stream as that frame."""
    frame = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string", "enum": [type.value for type in EventType]},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    }
    data = (
        '{"id":7,"run_id":"01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c","type":"log",'
        '"at":"2026-01-01T00:00:00+00:00","data":{"line":"3 words.txt","step":"step-2"}}'
    )
    example = f"id: {id_example}\nevent: log\ndata: {data}\n\n"
    content = {"text/event-stream": {"schema": {}, "itemSchema": frame, "example": example}}
    return {"description": description, "content": content}


class History:
    """The events of a run that are kept: by the database, and for the newest part by the event log."""

    def __init__(self, store: Store, event_log: EventLog) -> None:
        self._store = store
        self._event_log = event_log

    async def after(self, run_id: str, cursor: int) -> tuple[Sequence[Event], bool]:
        """The next events over `cursor`, at most a page, and whether there may be more. Raises Unavailable when the
        database is away.

        The database lags behind the event log by the time of a batch, so the log's part begins where the database's
        ends.
        """
        events = await self._store.events.after(run_id, cursor, PAGE)
        if not (room := PAGE - len(events)):
            return events, True
        last = events[-1].id if events else cursor
        try:
            live = await self._event_log.after(run_id, last, room)
        except Unavailable:
            return events, False
        if live and live[0].id > last + 1:
            # The log keeps the newest part only; what lies between may have been stored just now.
            stored = await self._store.events.after(run_id, last, room)
            if stored:
                return [*events, *stored], True
        return [*events, *live], len(live) == room

    async def span(self, run_id: str, cursor: int) -> tuple[Span[int], bool]:
        """The same as frames, with gaps."""
        events, more = await self.after(run_id, cursor)
        frames = [frame_of(event) for event in _with_gaps(run_id, cursor, events)]
        return span_of(frames, events[-1].id if events else cursor), more

    async def last_id(self, run_id: str) -> int:
        """The number of the last event that anybody can have received."""
        stored = await self._store.events.last_id(run_id)
        try:
            return max(stored, await self._event_log.last_id(run_id) or 0)
        except Unavailable:
            return stored

    async def caught_up(self, run_id: str, cursor: int) -> int:
        """The last id, when it has come as far as the cursor or does not come in time.

        A watcher receives an event a moment before it is stored. When Redis is emptied within that moment, nobody knows
        of it until its worker has stored it; to send the watcher back would send it twice.
        """
        last = 0
        for _ in range(CATCH_UP_LOOKS):
            await asyncio.sleep(CATCH_UP_PAUSE_SECONDS)
            last = await self.last_id(run_id)
            if last >= cursor:
                break
        return last


@dataclass(slots=True)
class Position(Generic[Cursor]):
    """How far one watcher is: behind which cursor, behind which notice, and whether the last frame was an end."""

    cursor: Cursor
    notice: int = 0
    is_end: bool = False


async def stream(
    watched: Watched[Cursor],
    history: ReadHistory[Cursor],
    position: Position[Cursor],
    watcher: Watcher,
    opening: bytes = b"",
) -> AsyncGenerator[bytes, None]:
    """Frames after `position`, which moves with them, until an end; several in one chunk where several are there.

    Replays the history, follows what is live until the buffer reaches back to the watcher no more, and begins again.
    Ends at once, so that the client connects again, when what it watches was swept before the stream began.
    """
    with watched.watched():
        if watched.swept:
            return
        if opening:
            yield opening
        waits = pauses()
        while True:
            epoch, before = watched.epoch, position.cursor
            try:
                async with aclosing(replay(history, position)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except Unavailable:
                await asyncio.sleep(next(waits))
                if watcher.is_due:
                    yield COMMENT
                continue
            if position.is_end:
                return
            replayed = position.cursor
            async with aclosing(follow(watched, epoch, position, watcher)) as chunks:
                async for chunk in chunks:
                    yield chunk
            if position.is_end:
                return
            if position.cursor != replayed:
                waits = pauses()
            elif position.cursor == before and watched.epoch == epoch:
                # An event was announced that cannot be read yet.
                await asyncio.sleep(next(waits))


async def replay(history: ReadHistory[Cursor], position: Position[Cursor]) -> AsyncGenerator[bytes, None]:
    """The frames that are kept after `position`, which moves with them. Raises Unavailable."""
    more = True
    while more:
        span, more = await history(position.cursor)
        position.cursor = span.cursor
        for chunk in span.chunks:
            yield chunk
        if span.chunks:
            # A failed run that was retried goes on after its first end, which may be the last frame of a page.
            position.is_end = span.is_end


async def kept(
    history: ReadHistory[Cursor], position: Position[Cursor], opening: bytes = b""
) -> AsyncGenerator[bytes, None]:
    """The frames that are kept after `position`, and no further ones. It ends early where the database does not
    answer."""
    if opening:
        yield opening
    try:
        async with aclosing(replay(history, position)) as chunks:
            async for chunk in chunks:
                yield chunk
    except Unavailable as error:
        log.warning("a stream ends early", error=error.message)


async def follow(
    watched: Watched[Cursor], epoch: int, position: Position[Cursor], watcher: Watcher
) -> AsyncGenerator[bytes, None]:
    """The frames of the buffer after `position`, which moves with them, as they come; notices, and comments while
    nothing happens. Ends behind an end, when the buffer does not reach back to `position`, and when `watched` has
    another epoch."""
    while watched.epoch == epoch:
        live = watched.after(position.cursor)
        if live is None:
            return
        position.cursor = live.cursor
        if live.chunks:
            for chunk in live.chunks:
                yield chunk
            if live.is_end:
                position.is_end = True
                return
            continue
        notices, position.notice = watched.notices_after(position.notice)
        if notices or watcher.is_due:
            yield notices or COMMENT
        else:
            await watched.wait(watcher)


class EventStream(EventSourceResponse):
    """Sends the chunks of `stream`, and ends when its client has gone or the hub says so.

    The library's own way to do this costs three tasks a client and a timer a chunk; here one task waits for the client
    to go, and the hub looks after all clients at once.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], hub: Hub, watcher: Watcher) -> None:
        super().__init__(chunks)
        self._chunks = chunks
        self._hub = hub
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher, task = self._watcher, asyncio.current_task()
        assert task is not None
        # Closed before it began, too, when there is no room for it.
        async with aclosing(self._chunks):
            with self._hub.watching(watcher):
                waiting = asyncio.create_task(_wait_until_gone(receive, watcher), name="client of a stream")
                try:
                    watcher.task = task
                    await self._send_all(send)
                except asyncio.CancelledError:
                    if watcher.end_reason is None:
                        raise
                    task.uncancel()
                finally:
                    watcher.task = None
                    await end(waiting)
        if watcher.end_reason is StreamEnd.TOO_SLOW:
            log.warning("a client took nothing for too long and is cut off", path=scope["path"])
        elif watcher.end_reason is not StreamEnd.GONE and not watcher.is_sending:
            last = REVOKED if watcher.end_reason is StreamEnd.REVOKED else b""
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_all(self, send: Send) -> None:
        watcher, now = self._watcher, asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            watcher.is_sending, watcher.sent_at = True, now()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            watcher.is_sending = watcher.is_due = False
            if watcher.end_reason is not None:  # a cancellation may be lost on Python 3.11 (`backplane.process.tasks`)
                return


async def _wait_until_gone(receive: Receive, watcher: Watcher) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    watcher.end(StreamEnd.GONE)


def _with_gaps(run_id: str, cursor: int, events: Sequence[Event]) -> list[Event]:
    """The events, and where numbers are missing without a `gap`, a `gap` with the number before the next event."""
    whole: list[Event] = []
    for event in events:
        if event.id > cursor + 1 and event.type is not EventType.GAP:
            whole.append(gap(run_id, cursor, event.id, "not kept"))
        whole.append(event)
        cursor = event.id
    return whole


def gap(run_id: str, after: int, before: int, reason: str) -> Event:
    return encode(run_id, before - 1, EventType.GAP, {"after": after, "before": before, "reason": reason})
