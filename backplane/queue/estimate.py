"""How long a run waits: a pure estimate from what the last runs took, and from how long those that run now have run.

A run that has taken longer than most is not near its end because of that. It is expected to go on like past runs that
took as long; one that has taken longer than all of them is expected to take as long again (run times have heavy tails).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from statistics import fmean

Z90 = 1.2816
"""The 90th percentile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds: about half of such runs wait no longer than `p50`, nine of ten no longer than `p90`."""

    p50: float
    p90: float


def remaining_seconds(ages: Sequence[float], durations: Sequence[float]) -> tuple[float, ...]:
    """How much longer each run lasts that has run for so many seconds: the mean of what was left of the past runs that
    lasted longer, and no less than its own age times the share of those that did not. `durations`: one at least."""
    known = sorted(durations)
    of_longest = list(accumulate(reversed(known), initial=0.0))
    found = []
    for age in ages:
        ended = bisect_right(known, age)
        longer = len(known) - ended
        left = of_longest[longer] / longer - age if longer else 0.0
        found.append(max(left, age * ended / len(known)))
    return tuple(found)


def estimated_wait(turns: int, slots: int, durations: Sequence[float], remaining: Sequence[float] = ()) -> Wait:
    """Until `turns` of the runs ahead have ended, `slots` at a time (one, where there is none yet).

    `durations` are those of the last runs, in seconds, one at least. The sum of many is nearly normal, whatever each
    is (the central limit theorem). One alone says nothing of the spread: it is taken to be as large as the mean, as
    that of an exponential distribution is. `remaining` (`remaining_seconds`) are those of the runs in these slots, or a
    sample of them. They only make it longer: how near its end a run is, is not known so well.
    """
    if turns <= 0:
        return Wait(0.0, 0.0)
    at_once = max(slots, 1)
    mean = fmean(durations)
    # Not statistics.pstdev, whose exactness costs a start a tenth of a millisecond.
    spread = sqrt(fmean([(one - mean) ** 2 for one in durations])) if len(durations) > 1 else mean
    middle = turns * mean / at_once
    longer = max(_until_ended(turns, at_once, mean, remaining) - middle, 0.0) if remaining and mean > 0 else 0.0
    # The added time is as uncertain as it is long, as with an exponential distribution.
    return Wait(middle + longer, middle + longer + Z90 * (spread * sqrt(turns) / at_once + longer))


def _until_ended(turns: int, slots: int, mean: float, remaining: Sequence[float]) -> float:
    """When so many runs have ended, in a flow: a slot ends its run evenly over what remains of it, then one each `mean`
    seconds. Walks from one end to the next."""
    weight = slots / len(remaining)
    ends = sorted(max(one, mean / 1000) for one in remaining)
    rate = weight * sum(1 / one for one in ends)
    at = ended = 0.0
    for end in ends:
        if ended + rate * (end - at) >= turns:
            break
        ended, at = ended + rate * (end - at), end
        rate += weight * (1 / mean - 1 / end)
    return at + (turns - ended) / rate
