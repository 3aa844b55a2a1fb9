"""What an overview of runs has, and what is computed of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backplane.domain.run_lists import ListedRun
from backplane.domain.runs import RunStatus

MINUTES = 60


@dataclass(frozen=True, slots=True)
class EndedCount:
    """So many runs ended in this state in a minute, which is counted since 1970."""

    minute: int
    status: RunStatus
    count: int


@dataclass(frozen=True, slots=True)
class RunsOverview:
    """Runs that go on, and those that ended in the last hour. Times are in seconds."""

    under_way: Mapping[RunStatus, int]
    ended: Sequence[EndedCount]
    queue_seconds: Sequence[float]
    run_seconds: Sequence[float]
    failed: Sequence[ListedRun]
    open_decisions: int
    oldest_decision: datetime | None

    def counts(self) -> dict[RunStatus, int]:
        """Of each state; of those that are over, in the last hour."""
        found = dict.fromkeys(RunStatus, 0) | dict(self.under_way)
        for each in self.ended:
            found[each.status] += each.count
        return found


@dataclass(frozen=True, slots=True)
class Minute:
    minute: datetime
    ended: int
    failed: int


def throughput(ended: Sequence[EndedCount], now: datetime) -> list[Minute]:
    """The last MINUTES minutes, the oldest first; the last one is not over yet."""
    this = int(now.timestamp()) // 60
    counts = {minute: [0, 0] for minute in range(this - MINUTES + 1, this + 1)}
    for each in ended:
        if (found := counts.get(each.minute)) is not None:
            found[0] += each.count
            found[1] += each.count if each.status is RunStatus.FAILED else 0
    begin = datetime(1970, 1, 1, tzinfo=UTC)
    return [Minute(begin + timedelta(minutes=minute), *found) for minute, found in counts.items()]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of the values are not above, from 0 to 1; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
