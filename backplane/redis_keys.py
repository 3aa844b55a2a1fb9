"""Every Redis key, and who writes and reads it.

Redis may be emptied at any moment: nothing here is the only copy of anything. A key either has a lifetime or is
declared permanent, which means that its size is bounded by the runs that are under way. `docs/architecture.md` shows
this table, and `make check` holds the two against each other.
"""

from dataclasses import dataclass

from backplane.runs import Priority

PENDING = {
    Priority.CRITICAL: "jobs:pending:critical",
    Priority.HIGH: "jobs:pending:high",
    Priority.NORMAL: "jobs:pending",
    Priority.LOW: "jobs:pending:low",
}
"""Highest first: the order in which they are emptied."""

LEASES = "jobs:leases"
SCHEDULED = "jobs:scheduled"
DOORBELL = "jobs:doorbell"
DURATIONS = "jobs:durations"
WORKERS = "jobs:workers"
CANCELS = "jobs:cancels"


def job(run_id: str) -> str:
    return f"jobs:{run_id}"


def stream(run_id: str) -> str:
    return f"agent:events:{run_id}"


def channel(run_id: str) -> str:
    return f"agent:logs:{run_id}"


@dataclass(frozen=True, slots=True)
class Key:
    pattern: str
    type: str
    lifetime: str
    writer: str
    reader: str
    purpose: str


KEYS: tuple[Key, ...] = (
    Key(
        "jobs:pending",
        "list",
        "permanent",
        "API, reaper",
        "worker",
        "waiting runs of normal priority; pushed left, taken right",
    ),
    Key("jobs:pending:{priority}", "list", "permanent", "API, reaper", "worker", "the same for critical, high and low"),
    Key(
        "jobs:{run_id}",
        "hash",
        "while queued or held, then 1 h",
        "API, worker, reaper",
        "worker, API",
        "the job: state, user, priority, generation, crashes, worker",
    ),
    Key(
        "jobs:leases",
        "sorted set",
        "permanent",
        "worker, reaper",
        "reaper, API",
        "held runs by the time their lease ends",
    ),
    Key(
        "jobs:scheduled",
        "sorted set",
        "permanent",
        "worker, reaper",
        "reaper, API",
        "runs by the time of their next attempt",
    ),
    Key(
        "jobs:doorbell",
        "list",
        "permanent, at most 100 entries",
        "API, reaper, worker",
        "worker",
        "wakes workers that block on it",
    ),
    Key(
        "jobs:durations",
        "list",
        "permanent, at most 100 entries",
        "worker",
        "API",
        "seconds that the last runs took: the estimate",
    ),
    Key(
        "jobs:workers",
        "sorted set",
        "permanent; entries go after one lease",
        "worker, reaper",
        "API",
        "live workers and their slots",
    ),
    Key(
        "jobs:cancels", "channel", "-", "API", "worker", "run ids to cancel, to be quick; the intent is in the database"
    ),
    Key(
        "agent:events:{run_id}",
        "stream",
        "STREAM_REDIS_TTL_SECONDS after the end; RUN_TIMEOUT_MAX_SECONDS more without one",
        "API, worker",
        "API",
        "the newest events of a run, by number",
    ),
    Key("agent:logs:{run_id}", "channel", "-", "API, worker", "API", "events as they happen, one JSON object a line"),
)
