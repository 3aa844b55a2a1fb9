"""The run that `bench.fanout` streams: log lines, each event about 300 bytes, published in batches as a busy worker
does."""

import time

from backplane.domain.events import Event, EventType, encode

BATCH = 20
LINE = "x" * 120


def events(run_id: str, count: int) -> list[Event]:
    """The events, numbered from 1: the first has the state, the last is the end."""
    first = encode(run_id, 1, EventType.STATUS, {"status": "created", "attempt": 1})
    return [first, *batch(run_id, 2, count - 2), encode(run_id, count, EventType.END, {"status": "completed"})]


def batch(run_id: str, first: int, count: int) -> list[Event]:
    """Each line ends with the time when it was made, 16 characters wide."""
    line = f"{LINE} sent={time.monotonic():016.6f}"
    return [encode(run_id, first + at, EventType.LOG, {"line": line, "step": "step-1"}) for at in range(count)]
