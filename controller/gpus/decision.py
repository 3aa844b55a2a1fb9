"""Whether a GPU machine is started or stopped now: a decision about values alone.

One change at a time. A machine that starts counts as capacity, so a line that is long starts one and then waits for it.
One that nobody offers is not waited for: others are stopped meanwhile, and it goes first.
A machine is stopped when the line has been short for a while, so that a line that comes and goes starts and stops none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from backplane.domain.gpus import COMING, PAID, Machine, MachineState, Spending, SpendingCaps, why_stop

FAILURES_WITHIN = timedelta(hours=1)
OFFER_PATIENCE = timedelta(minutes=10)
"""A machine that was wanted for so long, and has had no offer, keeps nothing else from changing."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """One more above `out_above` that wait, one fewer below `in_below`, after the line was that short for
    `in_after`."""

    least: int = 1
    most: int = 5
    out_above: int = 100
    in_below: int = 10
    in_after: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Fleet:
    """`machines`: all that have not ended. `waiting`: None when it is not known. `use`: how many calls a machine served
    lately, by its id. `low_since`: since when fewer than `in_below` wait. `failures`: when machines ended that never
    became ready."""

    machines: Sequence[Machine]
    waiting: int | None
    use: Mapping[str, float]
    low_since: datetime | None
    failures: Sequence[datetime]
    spending: Spending


@dataclass(frozen=True, slots=True)
class Scaling:
    change: Literal["none", "start", "stop"]
    reason: str
    machine_id: str | None = None


def scaling_of(fleet: Fleet, rules: ScalingRules, caps: SpendingCaps, now: datetime) -> Scaling:
    staying = [machine for machine in fleet.machines if not machine.is_leaving]
    stuck = [machine for machine in staying if has_no_offer(machine, now)]
    coming = [machine for machine in staying if machine.state in COMING and machine not in stuck]
    paid = [machine for machine in staying if machine.state is not MachineState.WANTED]
    over = why_stop(fleet.spending, caps)
    # What leaves already costs less soon: another one is stopped when that is not enough.
    if over and paid and why_stop(_when_left(fleet), caps):
        return Scaling("stop", over, _least_used(paid, fleet.use).id)
    if len(staying) > rules.most:
        return Scaling(
            "stop", f"there are more than GPU_MAX_MACHINES ({rules.most})", _least_used(staying, fleet.use).id
        )
    if coming:
        return Scaling("none", f"{_in_words(coming[0])}; there is one change at a time")
    if len(staying) < rules.least:
        return _start(fleet, rules, now, f"there are fewer than GPU_MIN_MACHINES ({rules.least})")
    if fleet.waiting is None:
        return Scaling("none", "nobody knows how many calls wait")
    if fleet.waiting > rules.out_above and stuck:
        return Scaling("none", f"{fleet.waiting} wait, more than {rules.out_above}, but {_in_words(stuck[0])}")
    if fleet.waiting > rules.out_above:
        return _start(fleet, rules, now, f"{fleet.waiting} wait, more than {rules.out_above}")
    if fleet.waiting >= rules.in_below:
        return Scaling("none", f"{fleet.waiting} wait: between {rules.in_below} and {rules.out_above} nothing changes")
    if len(staying) <= rules.least:
        return Scaling("none", f"{fleet.waiting} wait, and there are as few machines as GPU_MIN_MACHINES says")
    if any(machine.is_leaving for machine in fleet.machines):
        return Scaling("none", "a machine is being stopped; there is one change at a time")
    if fleet.low_since is None or now - fleet.low_since < rules.in_after:
        return Scaling(
            "none", f"fewer than {rules.in_below} wait, but not yet for {rules.in_after.total_seconds():g} s"
        )
    return Scaling("stop", f"fewer than {rules.in_below} wait", _least_used(staying, fleet.use).id)


def has_no_offer(machine: Machine, now: datetime) -> bool:
    """Whether the machine is only wanted, and was for too long."""
    return machine.state is MachineState.WANTED and now - machine.state_since > OFFER_PATIENCE


def _in_words(machine: Machine) -> str:
    return f"machine {machine.id} is {machine.state}" + (f": {machine.reason}" if machine.reason else "")


def _start(fleet: Fleet, rules: ScalingRules, now: datetime, reason: str) -> Scaling:
    if len(fleet.machines) >= rules.most:
        return Scaling("none", f"{reason}, but there are {rules.most} machines, with those that end; that is the most")
    if (pause := start_pause(fleet.failures, now)) > timedelta():
        return Scaling(
            "none", f"{reason}, but machines did not become healthy; the next starts in {pause.total_seconds():.0f} s"
        )
    return Scaling("start", reason)


def start_pause(failures: Sequence[datetime], now: datetime) -> timedelta:
    """How long no machine is started after those that never became ready; it doubles with each of the last hour."""
    recent = [at for at in failures if now - at < FAILURES_WITHIN]
    if not recent:
        return timedelta()
    pause: timedelta = min(FIRST_PAUSE * 2 ** min(len(recent) - 1, 10), LONGEST_PAUSE)
    return max(max(recent) + pause - now, timedelta())


def _when_left(fleet: Fleet) -> Spending:
    leaving = sum(
        machine.micro_usd_per_hour for machine in fleet.machines if machine.is_leaving and machine.state in PAID
    )
    spending = fleet.spending
    return Spending(max(spending.per_hour - leaving, 0), spending.today, spending.day_left)


def _least_used(machines: Sequence[Machine], use: Mapping[str, float]) -> Machine:
    """One that does not serve yet goes first, then the one with the fewest calls, then the youngest."""
    return min(
        machines,
        key=lambda one: (
            one.state is MachineState.READY,
            use.get(one.id, 0.0),
            -one.created_at.timestamp(),
        ),
    )
