"""How the programs of a benchmark tell each other what ran and when: a file of counters that all of them map.

Nothing but the standard library, as peers run in an environment of their own. CLOCK_MONOTONIC is the same for all
processes of a machine. One process at a time may write, which is so here: one worker process, or RQ's children in turn.
"""

import mmap
import time
from pathlib import Path


class Marks:
    """Room for `jobs` jobs, numbered from 0. Marking costs under a microsecond."""

    def __init__(self, path: Path, jobs: int | None = None) -> None:
        """Makes the file anew where `jobs` is given."""
        if jobs is not None:
            path.write_bytes(bytes(8 * (1 + 2 * jobs)))
        with path.open("r+b") as file:
            self._slots = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def mark(self, job: int) -> None:
        """The job starts."""
        slots = self._slots
        if not slots[2 * job + 1]:
            slots[2 * job + 1] = time.monotonic_ns()
        slots[2 * job + 2] += 1
        slots[0] += 1

    @property
    def starts(self) -> int:
        """How many jobs have started, those that started twice counted twice."""
        return self._slots[0]

    def started_at(self, job: int) -> int:
        """Nanoseconds of the monotonic clock; 0: not yet."""
        return self._slots[2 * job + 1]

    @property
    def first_start(self) -> int:
        return min(filter(None, self._slots[1::2].tolist()))

    @property
    def started_once(self) -> int:
        """How many jobs have started exactly once."""
        return self._slots[2::2].tolist().count(1)
