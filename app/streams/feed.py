"""All events of a user's runs, as one stream: for a console that watches many runs at once.

The database gives each event its place among the user's, so it alone is read here. Redis only announces that there is
something to read. An event is announced when it happens and stored a moment later, so a feed reads until an announced
event has appeared, with growing pauses. One feed serves all who watch a user; nothing is read while nothing happens.
"""

import asyncio
from collections.abc import Iterator

from app.streams.buffer import Frame, Span, Watched, span_of
from backplane.domain.events import Event, EventType, Place
from backplane.domain.runs import RunStatus
from backplane.errors import InvalidInput
from backplane.store import Store

PAGE = 500
READ_SECONDS = 0.02
"""The shortest time between two reads of a feed."""
READS = 9
"""Further reads that an event is waited for, the last after some ten seconds; `Hub` looks again later, now and then."""
RUNS_REMEMBERED = 1000
LARGEST = 2**63 - 1
_ANY = "any run"


def cursor_text(place: Place) -> str:
    return f"{place.tx}-{place.seq}"


def cursor_of(text: str, field: str) -> Place:
    """Raises InvalidInput."""
    tx, dash, seq = text.partition("-")
    if dash and all(part.isascii() and part.isdigit() and len(part) <= 19 for part in (tx, seq)):
        place = Place(int(tx), int(seq))
        if max(place) <= LARGEST:
            return place
    raise InvalidInput(f"{field}: send the id of the last event, such as 0-17", field=field)


def frame_of(place: Place, event: Event) -> Frame[Place]:
    body = f"id: {cursor_text(place)}\nevent: {event.type}\ndata: {event.line}\n\n".encode()
    return Frame(place, body, False)


async def history(store: Store, user_id: str, cursor: Place) -> tuple[Span[Place], bool]:
    """What is kept after the cursor, at most a page, and whether there is more. Raises Unavailable."""
    page = await store.events.of_user(user_id, cursor, PAGE)
    frames = [frame_of(place, event) for place, event in page.events]
    return span_of(frames, page.until), len(frames) == PAGE


class WatchedFeed(Watched[Place]):
    """`due_at`: when it is to be read, by the loop's clock; None: when an event is announced. `queued`: the user's
    runs whose position is sent, at most `positions_max`."""

    def __init__(self, user_id: str, at: Place, buffer_size: int, buffer_bytes: int, positions_max: int) -> None:
        super().__init__(at, buffer_size, buffer_bytes)
        self.user_id = user_id
        self.due_at: float | None = None
        self.queued: dict[str, None] = {}
        self._positions_max = positions_max
        self._read_at = 0.0
        self._awaited: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._pauses = _pauses()

    def announced(self, run_id: str, last_id: int) -> None:
        """Read until it has appeared."""
        if self._seen.get(run_id, 0) < last_id:
            self._awaited[run_id] = max(self._awaited.get(run_id, 0), last_id)
            self._pauses = _pauses()
            self.look()

    def may_have_missed(self) -> None:
        """The subscription was lost for a while: what was published then may be stored by now, or soon."""
        self.announced(_ANY, LARGEST)

    def look(self) -> None:
        """Read once, as soon as may be."""
        now = asyncio.get_running_loop().time()
        soon = max(now, self._read_at + READ_SECONDS)
        self.due_at = soon if self.due_at is None else min(self.due_at, soon)

    async def read(self, store: Store) -> None:
        """Take in what has been stored. Raises Unavailable."""
        self._read_at = asyncio.get_running_loop().time()
        page = await store.events.of_user(self.user_id, self.newest, PAGE)
        for _, event in page.events:
            self._saw(event)
        self.extend([frame_of(place, event) for place, event in page.events], page.until)
        if page.events:
            self.wake()
        now = asyncio.get_running_loop().time()
        if len(page.events) == PAGE:
            self.due_at = now
        elif (pause := next(self._pauses, None)) is not None:
            self.due_at = now + pause
        else:
            self.due_at = None
            self._awaited.clear()

    def _saw(self, event: Event) -> None:
        if len(self._seen) >= RUNS_REMEMBERED:
            self._seen.clear()
        self._seen[event.run_id] = event.id
        if self._awaited.get(event.run_id, event.id + 1) <= event.id:
            del self._awaited[event.run_id]
            if not self._awaited:
                self._pauses = iter(())
        if event.type is EventType.STATUS:
            if event.status == RunStatus.QUEUED and len(self.queued) < self._positions_max:
                self.queued[event.run_id] = None
            else:
                self.queued.pop(event.run_id, None)
                self.withdraw(event.run_id)


def _pauses() -> Iterator[float]:
    return (READ_SECONDS * 2**count for count in range(READS))
