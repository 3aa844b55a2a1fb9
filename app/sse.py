"""The stream of a run: subscribe, replay what is after the cursor, then live; each event once, in order.

The subscription stands before the history is read (`Hub.open`), so nothing can happen in between unheard. A watcher is
a cursor: it takes from the ring what comes next, and where the ring does not reach back to it, or the wire was cut, it
reads the history again: the database, then what the live wire still keeps. So a reader may be as slow as it likes; it
costs a page of history, never a growing buffer, and one that takes nothing for a minute is cut off (`send_timeout`).
Numbers that are nowhere to be had are told as a `gap`. After `end` the stream ends.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from app.hub import WatchedRun, frame_of
from backplane.errors import Unavailable
from backplane.events import Event, EventType, encode
from backplane.logs.base import EventLog
from backplane.patience import pauses
from backplane.queue.base import Standing
from backplane.store import Store

PAGE = 500
"""Events that are read at once, and the most that one call of the JSON log gives."""


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

    async def last_id(self, run_id: str) -> int:
        """Of the last event that anybody can have seen."""
        stored = await self._store.events.last_id(run_id)
        try:
            return max(stored, await self._event_log.last_id(run_id) or 0)
        except Unavailable:
            return stored


async def stream(run: WatchedRun, history: History, cursor: int, opening: bytes = b"") -> AsyncIterator[bytes]:
    """Frames after `cursor` until `end`, several in one chunk where several are there.

    Ends at once, so that the client connects again, when the run was swept before the stream began.
    """
    with run.watched():
        if run.swept:
            return
        if opening:
            yield opening
        told: Standing | None = None
        waits = pauses()
        while True:
            epoch, before, ended = run.epoch, cursor, False
            try:
                while events := await history.after(run.run_id, cursor):
                    frames = [frame_of(event) for event in _with_gaps(run.run_id, cursor, events)]
                    yield b"".join(frame.body for frame in frames)
                    cursor = events[-1].id
                    # A failed run that was tried again goes on after its first end, which may close a page.
                    ended = frames[-1].is_end
                if ended:
                    return
            except Unavailable:
                await asyncio.sleep(next(waits))
                continue
            while run.epoch == epoch:
                # Taken before the look: what comes after it wakes this watcher.
                changed = run.next_change()
                live = run.after(cursor)
                if live is None:
                    break
                if live:
                    yield b"".join(frame.body for frame in live)
                    cursor = live[-1].id
                    waits = pauses()
                    if live[-1].is_end:
                        return
                elif run.is_queued and run.standing and run.standing is not told:
                    told = run.standing
                    yield _position(run.run_id, told)
                else:
                    await changed.wait()
            if cursor == before and run.epoch == epoch:
                # Told, but not to be read yet.
                await asyncio.sleep(next(waits))


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


def _position(run_id: str, standing: Standing) -> bytes:
    """Without an id: it is no part of the history, and a reconnecting client's cursor stays where it was."""
    data = {
        "position": standing.position,
        "estimated_wait_seconds": round(standing.wait.p50, 1),
        "estimated_wait_p90_seconds": round(standing.wait.p90, 1),
    }
    line = encode(run_id, 0, EventType.POSITION, data).line
    return f"event: position\ndata: {line}\n\n".encode()
