"""The one line that a benchmark prints: {"benchmark", "values", "goals": [{"what", "value", "goal", "met"}]}."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Goal:
    """`goal` is the most that `value` may be, or with `at_least` the least."""

    what: str
    value: float
    goal: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def as_dict(self) -> dict[str, object]:
        return {"what": self.what, "value": self.value, "goal": self.goal, "met": self.met}


def report(benchmark: str, values: Mapping[str, object], goals: Sequence[Goal]) -> None:
    print(json.dumps({"benchmark": benchmark, "values": values, "goals": [goal.as_dict() for goal in goals]}))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    return {
        "p50_ms": round(median(seconds) * 1000, 2),
        "p99_ms": round(quantiles(seconds, n=100, method="inclusive")[98] * 1000, 2),
    }
