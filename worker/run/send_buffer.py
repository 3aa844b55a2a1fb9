"""How many of a run's events go into one call, and what Redis keeps of them: pure decisions and counts.

`worker.run.events` makes the calls.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from backplane.domain.events import Event

SHARE = 500
"""Events of one run in one call."""


def size_of(event: Event) -> int:
    """The bytes of the event's line."""
    line = event.line
    return len(line) if line.isascii() else len(line.encode())


def share(waiting: Sequence[Event], max_bytes: int) -> list[Event]:
    """The first of these that go into one call: at most `SHARE`, and no more bytes than that, but one at least."""
    if len(waiting) == 1:
        return list(waiting)
    size = 0
    for count, event in enumerate(waiting[:SHARE]):
        size += size_of(event)
        if size > max_bytes and count:
            return list(waiting[:count])
    return list(waiting[:SHARE])


def count_until(waiting: Sequence[Event], last_id: int) -> int:
    """How many of these have this number or a lower one. Numbers rise."""
    if not waiting or waiting[-1].id <= last_id:
        return len(waiting)
    if waiting[0].id > last_id:
        return 0
    return bisect_right(waiting, last_id, key=lambda event: event.id)


class Kept:
    """What Redis keeps of a run's events, as its worker counts it: `bytes` in all, of which `stored_bytes` are in the
    database and are dropped with the next call. `not_stored`: for each call whose events are not in the database, the
    last number, and the bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self.stored_bytes = 0
        self.not_stored: deque[tuple[int, int]] = deque()

    def add(self, last_id: int, size: int, stored_id: int) -> None:
        self.bytes += size
        if last_id > stored_id:
            self.not_stored.append((last_id, size))
        else:
            self.stored_bytes += size

    def stored(self, last_id: int) -> None:
        while self.not_stored and self.not_stored[0][0] <= last_id:
            self.stored_bytes += self.not_stored.popleft()[1]

    def dropped(self, size: int) -> None:
        self.bytes -= size
        self.stored_bytes -= size
