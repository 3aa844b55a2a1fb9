"""At what rate of tokens agents may go on without drowning their machine: the search, without the measuring. Pure.

Start at 10 tokens/s for each of 5 agents and look at the CPU: above 85 % lower the rate by 20 %, below 50 % raise it by
25 %, until it holds at 70–80 %. Between these bounds that rule says nothing, so there the rate moves in proportion
towards the middle, by a tenth at most: what is near is not overshot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

START_RATE = 10.0
LOW, HIGH = 50.0, 85.0
TARGET_LOW, TARGET_HIGH = 70.0, 80.0
TARGET = (TARGET_LOW + TARGET_HIGH) / 2
RAISE, LOWER, NUDGE = 1.25, 0.8, 0.1


@dataclass(frozen=True, slots=True)
class Measurement:
    """`rate` and `reached` in tokens/s of each agent: asked for, and had. `cpu` in percent of what there is."""

    rate: float
    reached: float
    cpu: float

    @property
    def holds(self) -> bool:
        return TARGET_LOW <= self.cpu <= TARGET_HIGH


class Verdict(StrEnum):
    GO_ON = "go on"
    HOLDS = "holds"
    NOT_REACHED = "not reached"
    """The load cannot be had: what makes the tokens is slower than asked, and the CPU is not the limit."""
    GAVE_UP = "gave up"


def next_rate(rate: float, cpu: float) -> float:
    """The rate to try after this one was measured to take so much CPU."""
    if cpu > HIGH:
        return rate * LOWER
    if cpu < LOW:
        return rate * RAISE
    change = TARGET / cpu
    return rate * min(max(change, 1 - NUDGE), 1 + NUDGE)


def verdict(measured: Sequence[Measurement], rounds: int, *, holding: int = 2) -> Verdict:
    """Whether to measure once more. It holds when the last `holding` measurements did."""
    last = measured[-holding:]
    if len(last) == holding and all(one.holds for one in last):
        return Verdict.HOLDS
    if len(last) == holding and all(one.cpu < TARGET_LOW and one.reached < 0.8 * one.rate for one in last):
        return Verdict.NOT_REACHED
    return Verdict.GAVE_UP if len(measured) >= rounds else Verdict.GO_ON


def following_rate(last: Measurement) -> float:
    """One that holds is measured again as it is, to see whether it goes on to."""
    return last.rate if last.holds else next_rate(last.rate, last.cpu)


def starting_range(cores: int) -> tuple[int, int]:
    """Of tokens/s of an agent, what a machine with so many cores may be expected to end at."""
    if cores >= 16:
        return 20, 50
    return (10, 20) if cores >= 8 else (5, 10)
