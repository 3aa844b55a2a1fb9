"""A user's events on the bus, as a stream: what is kept behind a cursor, then each event when it is stored.

The rows are the truth and Redis only announces them, as for the stream of all runs (`app.streams.feed`). An event of
the bus is announced after its commit, so one look finds it. Where an announcement is lost, the look that the hub takes
at each heartbeat finds it. One buffer serves all who watch the same events of a user.
"""

import asyncio
import json

from app.streams.buffer import Frame, Span, Watched, span_of
from backplane.domain.bus import GAP_TYPE, EventFilter, ReadEvents, StoredEvent
from backplane.store import Store

PAGE = 500
READ_SECONDS = 0.02
"""The shortest time between two reads for one buffer."""
LARGEST = 2**63 - 1

BusKey = tuple[str, EventFilter]


def frame_of(event: StoredEvent) -> Frame[int]:
    body = f"id: {event.cursor}\nevent: {event.type}\ndata: {event.line}\n\n".encode()
    return Frame(event.cursor, body, False)


def gap(after: int, page: ReadEvents) -> Frame[int]:
    """Says that events behind `after` are missing. Its id is the place from which on none is."""
    begin = page.events[0].cursor - 1 if page.events else page.until
    data = json.dumps({"type": GAP_TYPE, "after": after, "before": begin + 1, "reason": "not kept, or never given"})
    return Frame(begin, f"id: {begin}\nevent: {GAP_TYPE}\ndata: {data}\n\n".encode(), False)


async def history(store: Store, user_id: str, wanted: EventFilter, cursor: int) -> tuple[Span[int], bool]:
    """What is kept behind the cursor, at most a page, and whether there is more. Raises Unavailable."""
    page = await store.bus.page(user_id, cursor, PAGE, wanted)
    frames = [gap(cursor, page)] if page.missing else []
    return span_of([*frames, *map(frame_of, page.events)], page.until), page.more


class WatchedBus(Watched[int]):
    """`due_at`: when it is to be read, by the loop's clock; None: when something is announced."""

    def __init__(self, key: BusKey, buffer_size: int, buffer_bytes: int) -> None:
        super().__init__(0, buffer_size, buffer_bytes)
        self.user_id, self.wanted = key
        self.due_at: float | None = None
        self._read_at = 0.0

    def look(self) -> None:
        """Read once, as soon as may be."""
        now = asyncio.get_running_loop().time()
        soon = max(now, self._read_at + READ_SECONDS)
        self.due_at = soon if self.due_at is None else min(self.due_at, soon)

    async def read(self, store: Store) -> None:
        """Take in what has been stored. Raises Unavailable."""
        self._read_at = asyncio.get_running_loop().time()
        self.due_at = None
        page = await store.bus.page(self.user_id, self.newest, PAGE, self.wanted)
        if page.missing:
            # The database was put back from a copy, or events were removed that nobody has read here: watchers read
            # the history, which says so.
            self.restart(page.until)
            self.epoch += 1
            self.wake()
        elif page.until > self.newest:
            self.extend(list(map(frame_of, page.events)), page.until)
            if page.events:
                self.wake()
        if page.more:
            self.look()
