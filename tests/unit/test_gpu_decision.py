"""When a GPU machine is started or stopped: each case of the autoscaler, the caps, and what they cost."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from backplane.domain.gpus import (
    RESERVE_SECONDS,
    FleetStatus,
    Machine,
    MachineSpec,
    MachineState,
    Spending,
    SpendingCaps,
    cost,
    decision_in_words,
    due_charges,
    label_of,
    machine_id_of,
    spending_of,
    why_not,
    why_stop,
)
from controller.gpus.decision import Fleet, ScalingRules, scaling_of, start_pause

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)
SPEC = MachineSpec("RTX_4090", 1, "image", 50)
RULES = ScalingRules()
DOLLAR = 1_000_000
CAPS = SpendingCaps(hour=10 * DOLLAR, day=100 * DOLLAR)
DAY_LEFT = timedelta(hours=12)
QUIET = Spending(0, 0, DAY_LEFT)
READY, STARTING, DRAINING = MachineState.READY, MachineState.STARTING, MachineState.DRAINING
WANTED = MachineState.WANTED


def machine(name: str, state: MachineState = READY, *, stop: str | None = None, minutes: int = 60) -> Machine:
    created = NOW - timedelta(minutes=minutes)
    return Machine(
        name, "vastai", SPEC, state, "autoscaler", created, created, stop_reason=stop, micro_usd_per_hour=DOLLAR
    )


def fleet(
    *machines: Machine,
    waiting: int | None = 0,
    use: dict[str, float] | None = None,
    low_since: datetime | None = LONG_AGO,
    failures: tuple[datetime, ...] = (),
    spending: Spending = QUIET,
) -> Fleet:
    return Fleet(machines, waiting, use or {}, low_since, failures, spending)


A, B, C, D, E = (machine(name) for name in "abcde")


@pytest.mark.parametrize(
    ("found", "change"),
    [
        pytest.param(fleet(), "start", id="without any machine the minimum is started"),
        pytest.param(fleet(waiting=None), "start", id="also when nobody knows what waits"),
        pytest.param(fleet(machine("a", WANTED)), "none", id="one that is wanted counts"),
        pytest.param(
            fleet(A, machine("b", WANTED, minutes=9), waiting=999), "none", id="and is waited for ten minutes"
        ),
        pytest.param(
            fleet(A, machine("b", WANTED, minutes=11), waiting=999), "none", id="no second one for which is no offer"
        ),
        pytest.param(
            fleet(A, B, machine("c", WANTED, minutes=9)), "none", id="none is stopped while one is wanted newly"
        ),
        pytest.param(
            fleet(A, B, machine("c", WANTED, minutes=11)), "stop", id="one without an offer stops the others' end not"
        ),
        pytest.param(fleet(A, waiting=100), "none", id="a hundred that wait start none"),
        pytest.param(fleet(A, waiting=101), "start", id="one more starts one"),
        pytest.param(fleet(A, machine("b", STARTING), waiting=999), "none", id="while one starts no other is started"),
        pytest.param(fleet(A, B, C, D, waiting=999), "start", id="a fifth is started"),
        pytest.param(fleet(A, B, C, D, E, waiting=999), "none", id="a sixth is not"),
        pytest.param(
            fleet(A, B, C, D, machine("e", MachineState.TERMINATING, stop="idle"), waiting=999),
            "none",
            id="one whose end is not certain counts for the most",
        ),
        pytest.param(fleet(machine("a", DRAINING, stop="idle")), "start", id="one that drains is no minimum"),
        pytest.param(fleet(A, B, waiting=10), "none", id="ten that wait stop none"),
        pytest.param(fleet(A, B, waiting=9), "stop", id="nine stop one"),
        pytest.param(fleet(A, waiting=0), "none", id="the last one stays"),
        pytest.param(fleet(A, B, waiting=None), "none", id="without knowing what waits none is stopped"),
        pytest.param(
            fleet(A, B, waiting=0, low_since=NOW - timedelta(seconds=599)), "none", id="not before it was short so long"
        ),
        pytest.param(fleet(A, B, waiting=0, low_since=NOW - timedelta(seconds=600)), "stop", id="but then"),
        pytest.param(
            fleet(A, B, machine("c", DRAINING, stop="idle")), "none", id="while one is stopped no other is stopped"
        ),
        pytest.param(
            fleet(A, waiting=999, failures=(NOW - timedelta(seconds=59),)),
            "none",
            id="after a failure there is a pause",
        ),
        pytest.param(fleet(A, waiting=999, failures=(NOW - timedelta(seconds=60),)), "start", id="of a minute"),
        pytest.param(
            fleet(A, B, spending=Spending(11 * DOLLAR, 0, DAY_LEFT)), "stop", id="one is stopped over the cap an hour"
        ),
        pytest.param(
            fleet(A, spending=Spending(DOLLAR, 99 * DOLLAR, DAY_LEFT)), "stop", id="also the last, over that of the day"
        ),
        pytest.param(
            fleet(A, machine("b", DRAINING, stop="cap"), spending=Spending(11 * DOLLAR, 0, DAY_LEFT)),
            "none",
            id="none where the one that goes is enough",
        ),
    ],
)
def test_one_machine_is_started_or_stopped_at_a_time(found: Fleet, change: str) -> None:
    decided = scaling_of(found, RULES, CAPS, NOW)
    assert decided.change == change, decided.reason


@pytest.mark.parametrize(
    ("found", "stopped"),
    [
        pytest.param(fleet(A, B, C, use={"a": 5, "b": 1, "c": 3}), "b", id="the one with the fewest calls"),
        pytest.param(
            fleet(machine("old", minutes=90), machine("young", minutes=5)), "young", id="the youngest of equals"
        ),
        pytest.param(
            fleet(*(machine(name) for name in "abcde"), machine("new", STARTING), use={"a": 0}),
            "new",
            id="of too many, one that does not serve yet",
        ),
        pytest.param(
            fleet(A, B, machine("new", WANTED, minutes=11)), "new", id="when few wait, one that nobody offers"
        ),
    ],
)
def test_the_least_used_machine_is_stopped(found: Fleet, stopped: str) -> None:
    decided = scaling_of(found, RULES, CAPS, NOW)
    assert (decided.change, decided.machine_id) == ("stop", stopped)


@pytest.mark.parametrize(
    ("ago", "left"),
    [
        ((), 0),
        ((0,), 60),
        ((70,), 0),
        ((10, 70), 110),
        ((0, 100, 200), 240),
        (tuple(range(0, 3000, 100)), 1800),
        ((3601,), 0),
    ],
)
def test_the_pause_after_failures_doubles_up_to_half_an_hour(ago: tuple[int, ...], left: int) -> None:
    failures = [NOW - timedelta(seconds=seconds) for seconds in ago]
    assert start_pause(failures, NOW) == timedelta(seconds=left)


@pytest.mark.parametrize(
    ("price", "time", "expected"),
    [
        (400_000, timedelta(hours=1), 400_000),
        (400_000, timedelta(minutes=1), 6667),
        (1, timedelta(microseconds=1), 1),
        (400_000, timedelta(), 0),
        (0, timedelta(days=1), 0),
    ],
)
def test_a_part_of_an_hour_costs_its_share_rounded_up(price: int, time: timedelta, expected: int) -> None:
    assert cost(price, time) == expected


def test_hours_are_charged_by_the_clock_and_add_up_to_the_whole() -> None:
    since = NOW + timedelta(minutes=37, seconds=12)
    paid = replace(machine("a"), charged_until=since, micro_usd_per_hour=360_000)
    charges = due_charges(paid, since + timedelta(hours=2))
    assert [charge.since.minute for charge in charges] == [37, 0, 0]
    assert all(one.until == other.since for one, other in pairwise(charges))
    assert sum(charge.micro_usd for charge in charges) == 720_000


def test_the_day_begins_anew_at_midnight() -> None:
    late = replace(machine("a"), charged_until=NOW.replace(hour=23), micro_usd_per_hour=DOLLAR)
    after = NOW.replace(hour=0) + timedelta(days=1, minutes=30)
    assert spending_of([late], 0, after) == Spending(DOLLAR, DOLLAR // 2, timedelta(hours=23, minutes=30))


HOURS = RESERVE_SECONDS / 3600


@pytest.mark.parametrize(
    ("spending", "price", "words"),
    [
        (Spending(9 * DOLLAR, 0, DAY_LEFT), DOLLAR, None),
        (Spending(9 * DOLLAR, 0, DAY_LEFT), DOLLAR + 1, "GPU_USD_PER_HOUR_MAX is \\$10"),
        (Spending(0, round((100 - HOURS - 1) * DOLLAR), DAY_LEFT), DOLLAR, None),
        (Spending(0, round((100 - HOURS - 1) * DOLLAR) + 1, DAY_LEFT), DOLLAR, "GPU_USD_PER_DAY_MAX of \\$100"),
        (Spending(0, 99 * DOLLAR, timedelta(minutes=30)), DOLLAR, None),
    ],
)
def test_a_machine_is_started_only_when_the_caps_pay_for_it_and_for_its_end(
    spending: Spending, price: int, words: str | None
) -> None:
    found = why_not(spending, price, CAPS)
    assert (found is None) == (words is None)
    if words is not None and found is not None:
        assert words.replace("\\", "") in found


@pytest.mark.parametrize(
    ("spending", "stops"),
    [
        (Spending(10 * DOLLAR, 0, DAY_LEFT), False),
        (Spending(10 * DOLLAR + 1, 0, DAY_LEFT), True),
        (Spending(DOLLAR, round((100 - HOURS) * DOLLAR), DAY_LEFT), False),
        (Spending(DOLLAR, round((100 - HOURS) * DOLLAR) + 1, DAY_LEFT), True),
        (Spending(0, 200 * DOLLAR, DAY_LEFT), False),
    ],
)
def test_machines_are_stopped_while_the_cap_still_pays_for_their_end(spending: Spending, stops: bool) -> None:
    assert (why_stop(spending, CAPS) is not None) is stops


def test_a_label_leads_to_its_machine_and_to_no_other_platforms() -> None:
    platform, other = "a" * 32, "b" * 32
    label = label_of(platform, machine("0123456789ab"))
    assert machine_id_of(platform, label) == "0123456789ab"
    assert machine_id_of(other, label) is None
    assert machine_id_of(platform, "my own machine") is None


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(None, "no controller has looked yet"), (5, "nothing changes"), (6, "no controller has looked since 2026-11-30")],
)
def test_a_decision_is_old_when_no_controller_looks(minutes: int | None, words: str) -> None:
    status = None
    if minutes is not None:
        status = FleetStatus(NOW - timedelta(minutes=minutes), 0, "nothing changes", "")
    assert decision_in_words(status, NOW).startswith(words)
