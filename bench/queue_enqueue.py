"""How fast one process enqueues: one call after another, and a hundred jobs at a time.

The bare limit stores the same bytes in the same number of round trips: HSET and LPUSH in one pipeline, for one job or
for a hundred. The peers have no limit to reach; they are here to be seen. SAQ and taskiq have no call for several jobs,
so theirs is ten calls at once.
"""

from collections.abc import Mapping
from statistics import median

from bench._contest import BARE_BATCH, OURS, PERSISTENCE, RQ, SAQ, TASKIQ_LIST, TASKIQ_STREAM, arena, rounds
from bench._result import Goal, report

ROUNDS = 5
JOBS = {
    OURS: {"one": 3_000, "batch": 20_000},
    BARE_BATCH: {"one": 3_000, "batch": 20_000},
    SAQ: {"one": 1_000, "batch": 3_000},
    TASKIQ_LIST: {"one": 1_000, "batch": 3_000},
    TASKIQ_STREAM: {"one": 1_000, "batch": 3_000},
    RQ: {"one": 500, "batch": 3_000},
}
GOAL = 0.7


def measure(persistence: str) -> dict[str, dict[str, float]]:
    """Jobs per second by contestant, then by way; medians."""
    rates: dict[str, dict[str, list[float]]] = {who.name: {how: [] for how in ways} for who, ways in JOBS.items()}
    with arena(persistence) as filled:
        for contestant in rounds(ROUNDS, tuple(JOBS)):
            for how, jobs in JOBS[contestant].items():
                rates[contestant.name][how].append(filled.enqueue(contestant, jobs, how))
    return {name: {how: round(median(found)) for how, found in ways.items()} for name, ways in rates.items()}


def goals(persistence: str, rates: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    ours, bare = rates[OURS.name], rates[BARE_BATCH.name]
    return [
        Goal(f"{persistence}: {how}, jobs/s to bare LPUSH+HSET's", round(ours[how] / bare[how], 2), GOAL, at_least=True)
        for how in ours
    ]


def main() -> None:
    measured = {persistence: measure(persistence) for persistence in PERSISTENCE}
    found = [goal for persistence, rates in measured.items() for goal in goals(persistence, rates)]
    report("queue_enqueue", {"unit": "jobs/s", **measured}, found)


if __name__ == "__main__":
    main()
