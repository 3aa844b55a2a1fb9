"""How much of the events that the database does not have yet may be kept in Redis: decisions, and no effects.

Redis holds the queue, so logs must never fill it. In order, events are stored within milliseconds and little is kept;
much is kept only while the database is slow or away. Then each limit here has the same soft effect: what is over it is
published after it was stored, a moment later, and nothing is lost. That is why a limit may be a share: each worker
counts what it keeps itself, and has an equal part of what all may keep. No count in Redis could go wrong.
"""

from dataclasses import dataclass

PART_OF_MEMORY = 4
"""A fourth of Redis's `maxmemory` is for events at most, and from three fourths on, whoever took them, nothing more is
kept: so a fourth is left for the queue, also beside other users of that Redis."""
WITHOUT_MAXMEMORY = 256 * 1024**2
"""The bytes for the events of all runs where Redis has no `maxmemory`."""
ENTRY_BYTES = 64
"""About what an entry of a stream takes beside the event's line."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Most bytes of events that are kept: of a run, of a user's runs, of all (0: a fourth of Redis's `maxmemory`), and
    most events of a run."""

    run_bytes: int
    user_bytes: int
    all_bytes: int
    run_events: int


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """The memory of Redis, in bytes; `most` is its `maxmemory`, 0: none."""

    used: int
    most: int

    @property
    def is_short(self) -> bool:
        return self.most > 0 and self.used * PART_OF_MEMORY >= self.most * (PART_OF_MEMORY - 1)


@dataclass(frozen=True, slots=True)
class LogRoom:
    """What one process may have kept at once, in bytes, and of a run in events too."""

    run_bytes: int
    user_bytes: int
    all_bytes: int
    run_events: int


NO_ROOM = LogRoom(0, 0, 0, 0)


def room_of(limits: LogLimits, memory: RedisMemory, workers: int) -> LogRoom:
    """The room of one of so many worker processes."""
    every = limits.all_bytes or memory.most // PART_OF_MEMORY or WITHOUT_MAXMEMORY
    if memory.is_short:
        every = 0
    share = max(workers, 1)
    user = min(limits.user_bytes, every) // share
    return LogRoom(min(limits.run_bytes, user), user, every // share, limits.run_events)
