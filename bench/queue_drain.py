"""How fast one worker process empties a full queue of jobs that do nothing, each leased, renewed and acknowledged.

20,000 jobs of 300 bytes for the platform's queue, without caps and with a thousand users of whom each may run ten at
once, and for the bare limit: claims of 50 in one script on the same client library. The peers are slower, so they get
fewer jobs; their rates are the same with more. Counted from the first job's start until nothing is left unacknowledged.
"""

from collections.abc import Mapping
from statistics import median

from bench._contest import (
    BARE_BATCH,
    OURS,
    OURS_CAPPED,
    PERSISTENCE,
    RQ,
    SAQ,
    TASKIQ_LIST,
    TASKIQ_STREAM,
    Contestant,
    arena,
    rounds,
)
from bench._result import Goal, report

ROUNDS = 5
JOBS = {
    BARE_BATCH: 20_000,
    OURS: 20_000,
    OURS_CAPPED: 20_000,
    SAQ: 5_000,
    TASKIQ_LIST: 5_000,
    TASKIQ_STREAM: 5_000,
    RQ: 300,
}
PEER_GOAL, RQ_GOAL, BARE_GOAL = 5.0, 100.0, 0.8


def measure(persistence: str) -> dict[Contestant, float]:
    """Jobs per second, medians."""
    rates: dict[Contestant, list[float]] = {contestant: [] for contestant in JOBS}
    with arena(persistence) as drained:
        for contestant in rounds(ROUNDS, tuple(JOBS)):
            rates[contestant].append(drained.drain(contestant, JOBS[contestant]))
    return {contestant: median(measured) for contestant, measured in rates.items()}


def goals(persistence: str, rates: Mapping[Contestant, float]) -> list[Goal]:
    best = max((SAQ, TASKIQ_LIST, TASKIQ_STREAM), key=rates.__getitem__)
    against = (
        (f"the best peer's ({best.name})", rates[best], PEER_GOAL),
        ("RQ's (fork)", rates[RQ], RQ_GOAL),
        ("the bare batch claim's", rates[BARE_BATCH], BARE_GOAL),
    )
    return [
        Goal(f"{persistence}: jobs/s to {whose}", round(rates[OURS] / rate, 2), goal, at_least=True)
        for whose, rate, goal in against
    ]


def main() -> None:
    measured = {persistence: measure(persistence) for persistence in PERSISTENCE}
    values = {
        persistence: {contestant.name: round(rate) for contestant, rate in rates.items()}
        for persistence, rates in measured.items()
    }
    report(
        "queue_drain",
        {"unit": "jobs/s", **values},
        [goal for persistence, rates in measured.items() for goal in goals(persistence, rates)],
    )


if __name__ == "__main__":
    main()
