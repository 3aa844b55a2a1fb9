"""How long a job waits for a worker that has nothing to do: from the enqueue call to the job's first line, and from
`start` by HTTP to the first event at a watcher.

The first is measured beside the barest hand-over there is, LPUSH to BRPOP between two asyncio programs on the same
client library, and beside SAQ, taskiq and RQ. Producer and worker are processes of their own throughout.
"""

import contextlib
from collections.abc import Sequence
from statistics import median

from bench._contest import BARE_LIST, OURS, PERSISTENCE, RQ, SAQ, TASKIQ_LIST, Contestant, arena, rounds
from bench._platform import platform
from bench._result import Goal, report, spread
from bench.first_event import one_run

ROUNDS = 5
JOBS = {BARE_LIST: 200, OURS: 200, SAQ: 100, TASKIQ_LIST: 100, RQ: 50}
RUNS = 100
WARM_UP = 10
BARE_GOAL, OVER_BARE_GOAL_MS = 1.5, 5.0
FIRST_EVENT_GOAL_MS = {"p50_ms": 10.0, "p99_ms": 25.0}

Spread = dict[str, float]


def medians(measured: Sequence[Spread]) -> Spread:
    return {name: median(one[name] for one in measured) for name in measured[0]}


def enqueue_to_start(persistence: str) -> dict[Contestant, Spread]:
    found: dict[Contestant, list[Spread]] = {contestant: [] for contestant in JOBS}
    with arena(persistence) as measured:
        for contestant in rounds(ROUNDS, tuple(JOBS)):
            seconds = measured.dispatch(contestant, WARM_UP + JOBS[contestant])
            found[contestant].append(spread(seconds[WARM_UP:]))
    return {contestant: medians(spreads) for contestant, spreads in found.items()}


def start_to_first_event(persistence: str, database: str) -> Spread:
    with (
        platform(database, persistence=persistence) as started,
        contextlib.closing(started.connection()) as control,
    ):
        for _ in range(WARM_UP):
            one_run(started, control)
        return medians([spread([one_run(started, control)[0] for _ in range(RUNS)]) for _ in range(ROUNDS)])


def main() -> None:
    values: dict[str, object] = {}
    goals: list[Goal] = []
    for persistence in PERSISTENCE:
        found = enqueue_to_start(persistence)
        ours, bare = found[OURS], found[BARE_LIST]
        first = {database: start_to_first_event(persistence, database) for database in ("sqlite", "postgres")}
        values[persistence] = {
            "enqueue to start": {contestant.name: times for contestant, times in found.items()},
            "start to first event": first,
        }
        to_bare, over_bare = round(ours["p50_ms"] / bare["p50_ms"], 2), round(ours["p99_ms"] - bare["p99_ms"], 2)
        goals.append(Goal(f"{persistence}: p50 from enqueue to start, to bare BRPOP's", to_bare, BARE_GOAL))
        goals.append(Goal(f"{persistence}: p99 over bare BRPOP's, ms", over_bare, OVER_BARE_GOAL_MS))
        for database, times in first.items():
            goals += [
                Goal(f"{persistence}, {database}: start to first event, {name}", times[name], goal)
                for name, goal in FIRST_EVENT_GOAL_MS.items()
            ]
    report("dispatch", values, goals)


if __name__ == "__main__":
    main()
