"""What of a run is removed when its time is over."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Expired(Enum):
    """What is removed of a run, and which runs are meant. Runs that are dead letters keep everything."""

    RUN = "run"
    """All of a run that is over."""
    UNSTARTED_RUN = "unstarted run"
    """All of a run that was created and never started."""
    FILES = "files"
    """The workspace of a run that is over."""
    EVENTS = "events"
    """The events of a run that is over, but for the newest."""


@dataclass(frozen=True, slots=True)
class LeasedRun:
    id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class EventSpan:
    """Events of a run by number, `last` not included."""

    run_id: str
    first: int
    last: int


def batches(spans: Iterable[EventSpan], size: int) -> Iterator[list[EventSpan]]:
    """The same events in the same order, at most `size` in a batch."""
    batch, room = list[EventSpan](), size
    for span in spans:
        first = span.first
        while first < span.last:
            last = min(span.last, first + room)
            batch.append(EventSpan(span.run_id, first, last))
            room -= last - first
            first = last
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch
