"""How long a run waits: a pure estimate from what the last runs took."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

Z90 = 1.2816
"""The 90th percentile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds: about half of such runs wait no longer than `p50`, nine of ten no longer than `p90`."""

    p50: float
    p90: float


def estimated_wait(turns: int, slots: int, durations: Sequence[float]) -> Wait:
    """Until `turns` of the runs ahead have ended, `slots` at a time (one, where there is none yet).

    `durations` are those of the last runs, in seconds, one at least. The sum of many is nearly normal, whatever each
    is (the central limit theorem). One alone says nothing of the spread: it is taken to be as large as the mean, as
    that of an exponential distribution is.
    """
    if turns <= 0:
        return Wait(0.0, 0.0)
    at_once = max(slots, 1)
    mean = fmean(durations)
    # Not statistics.pstdev, whose exactness costs a start a tenth of a millisecond.
    spread = sqrt(fmean([(one - mean) ** 2 for one in durations])) if len(durations) > 1 else mean
    middle = turns * mean / at_once
    return Wait(middle, middle + Z90 * spread * sqrt(turns) / at_once)
