"""The newest frames of something that is watched, and one wake-up for all who watch it.

Memory is bounded by the event buffer, not by the watchers: each watcher is a cursor into it, and watchers at the same
cursor are given the same bytes, joined once. A watcher that is older than the buffer reads the history
(`app.streams.sse`). The buffer has every frame behind `oldest_kept` up to `newest`.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from app.auth import Access
from backplane.domain.events import Place

Cursor = TypeVar("Cursor", int, Place)

CHUNK_BYTES = 64 * 1024
"""About how much is sent at once: what a slow reader costs in memory, and has to read before it counts as too slow."""
SPANS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Frame(Generic[Cursor]):
    """An event as every watcher gets it; encoded once."""

    cursor: Cursor
    body: bytes
    is_end: bool


@dataclass(frozen=True, slots=True)
class Span(Generic[Cursor]):
    """Frames in chunks, none perhaps, and the cursor behind them. `is_end`: the last of them is an end."""

    chunks: Sequence[bytes]
    cursor: Cursor
    is_end: bool = False


def span_of(frames: Sequence[Frame[Cursor]], cursor: Cursor) -> Span[Cursor]:
    chunks, first, size = [], 0, 0
    for number, frame in enumerate(frames, 1):
        size += len(frame.body)
        if size >= CHUNK_BYTES or number == len(frames):
            chunks.append(b"".join([each.body for each in frames[first:number]]))
            first, size = number, 0
    return Span(chunks, cursor, bool(frames) and frames[-1].is_end)


class Watched(Generic[Cursor]):
    """The event buffer of a run or of a feed. `epoch` grows whenever events may have been missed: a watcher that sees
    it change reads the history. `swept`: nobody watched it for a while, so the hub has unsubscribed from it."""

    def __init__(self, at: Cursor, buffer_size: int, buffer_bytes: int) -> None:
        self.oldest_kept: Cursor = at
        self.newest: Cursor = at
        self.epoch = 0
        self.watchers = 0
        self.idle_since = 0.0
        self.subscribed = False
        self.swept = False
        self.lock = asyncio.Lock()
        self._buffer_size = buffer_size
        self._buffer_bytes = buffer_bytes
        self._frames: list[Frame[Cursor]] = []
        self._bytes = 0
        self._spans: dict[Cursor, Span[Cursor]] = {}
        self._notices: dict[str, tuple[int, int, bytes]] = {}
        self._last_notice = 0
        self._waiting: dict[asyncio.Future[None], None] = {}

    def extend(self, frames: Sequence[Frame[Cursor]], newest: Cursor) -> None:
        """What comes after all before, up to `newest`."""
        self._frames.extend(frames)
        self._bytes += sum([len(frame.body) for frame in frames])
        self.newest = newest
        self._spans.clear()
        if len(self._frames) > 2 * self._buffer_size or self._bytes > 2 * self._buffer_bytes:
            self._shorten()

    def _shorten(self) -> None:
        """Keeps the newest frames that fit. It is not called for every frame, so it costs little for each."""
        first, size = len(self._frames), 0
        while first > max(0, len(self._frames) - self._buffer_size):
            with_it = size + len(self._frames[first - 1].body)
            if with_it > self._buffer_bytes:
                break
            first, size = first - 1, with_it
        self.oldest_kept = self._frames[first - 1].cursor
        del self._frames[:first]
        self._bytes = size

    def restart(self, at: Cursor) -> None:
        """Begin anew behind `at`: what lies before is to be read from the history."""
        self._frames.clear()
        self._bytes = 0
        self._spans.clear()
        self.oldest_kept = self.newest = at

    def after(self, cursor: Cursor) -> Span[Cursor] | None:
        """What comes next, empty when there is nothing yet; None when the buffer does not reach back so far."""
        if cursor >= self.newest:
            return Span((), cursor)
        if cursor < self.oldest_kept:
            return None
        span = self._spans.get(cursor)
        if span is None:
            if len(self._spans) >= SPANS_KEPT:
                self._spans.clear()
            span = self._spans[cursor] = self._join(cursor)
        return span

    def _join(self, cursor: Cursor) -> Span[Cursor]:
        first = last = bisect_right(self._frames, cursor, key=lambda frame: frame.cursor)
        size = 0
        while last < len(self._frames) and size < CHUNK_BYTES:
            size += len(self._frames[last].body)
            last += 1
        behind = self._frames[last - 1].cursor if last < len(self._frames) else self.newest
        return span_of(self._frames[first:last], behind)

    def notice(self, about: str, value: int, body: bytes) -> None:
        """Send what is no event, and of which only the last value counts. An unchanged value is sent once."""
        if about in self._notices and self._notices[about][1] == value:
            return
        self._last_notice += 1
        self._notices[about] = (self._last_notice, value, body)
        self.wake()

    def withdraw(self, about: str) -> None:
        self._notices.pop(about, None)

    def notices_after(self, last: int) -> tuple[bytes, int]:
        """The notices that still hold and are newer than `last`, and the number of the newest."""
        if last == self._last_notice:
            return b"", last
        return b"".join(body for number, _, body in self._notices.values() if number > last), self._last_notice

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, watcher: "Watcher") -> None:
        """Until the next change, or until the watcher is due for a comment. The caller looks into the buffer first, and
        awaits nothing between that and this call."""
        future = watcher.waiting = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            await future
        finally:
            self._waiting.pop(future, None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1
            self.idle_since = asyncio.get_running_loop().time()


class StreamEnd(Enum):
    """Why a stream ends before its end."""

    GONE = "the client has gone"
    TOO_SLOW = "the client takes nothing"
    SHUTDOWN = "the API shuts down"
    REVOKED = "the token was revoked, or its user has another tier now"


class Watcher:
    """A client of a stream. One loop of the process looks after all of them (`Hub`): a client that was sent nothing for
    a while gets a comment, and one that reads nothing is disconnected. `sent_at`: when the last send began, by the
    loop's clock."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.sent_at = asyncio.get_running_loop().time()
        self.is_sending = False
        self.is_due = False
        self.end_reason: StreamEnd | None = None
        self.task: asyncio.Task[object] | None = None
        self.waiting: asyncio.Future[None] | None = None

    def end(self, reason: StreamEnd) -> None:
        """Interrupt it, wherever it is."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        if self.task is not None:
            self.task.cancel()
        else:
            self._wake()

    def remind(self) -> None:
        """Let it send a comment, though nothing happened."""
        self.is_due = True
        self._wake()

    def _wake(self) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)
