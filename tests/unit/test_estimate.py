"""How long a run waits, from what the last runs took."""

from collections.abc import Sequence

import pytest

from backplane.queue.estimate import Wait, estimated_wait, remaining_seconds


@pytest.mark.parametrize("turns", [0, -3])
def test_a_run_that_has_a_free_slot_waits_for_nothing(turns: int) -> None:
    assert estimated_wait(turns, 4, [10.0]) == Wait(0.0, 0.0)


def test_runs_that_all_take_the_same_leave_nothing_uncertain() -> None:
    assert estimated_wait(6, 2, [10.0] * 5) == Wait(30.0, 30.0)


def test_more_slots_make_it_shorter() -> None:
    assert estimated_wait(4, 4, [10.0, 10.0]).p50 == estimated_wait(1, 1, [10.0, 10.0]).p50


def test_no_slot_at_all_counts_as_one() -> None:
    assert estimated_wait(2, 0, [10.0, 10.0]) == estimated_wait(2, 1, [10.0, 10.0])


def test_what_varies_widens_the_range_and_leaves_its_middle() -> None:
    even, uneven = estimated_wait(3, 1, [10.0, 10.0]), estimated_wait(3, 1, [1.0, 19.0])
    assert even.p50 == uneven.p50
    assert even.p90 < uneven.p90


def test_the_range_of_many_runs_is_narrower_for_its_length_than_that_of_few() -> None:
    few, many = estimated_wait(1, 1, [1.0, 19.0]), estimated_wait(100, 1, [1.0, 19.0])
    assert many.p90 / many.p50 < few.p90 / few.p50


def test_a_single_measurement_is_not_taken_for_certain() -> None:
    assert estimated_wait(1, 1, [120.0]).p90 > 240.0


EVEN, TAILED = [10.0] * 10, [1.0] * 9 + [100.0]
REMAINING = {
    "fresh, it takes what one takes": (0.0, EVEN, 10.0),
    "half way, the rest": (4.0, EVEN, 6.0),
    "older than all, as long again": (20.0, EVEN, 20.0),
    "past the many, what is left of the few": (5.0, TAILED, 95.0),
    "near the end of the few, by its age": (99.0, TAILED, 99.0 * 0.9),
    "no age at all": (0.0, [0.0], 0.0),
}


@pytest.mark.parametrize(("age", "durations", "left"), REMAINING.values(), ids=REMAINING)
def test_a_run_lasts_as_long_as_past_ones_of_its_age_did(age: float, durations: Sequence[float], left: float) -> None:
    assert remaining_seconds([age], durations) == pytest.approx((left,))


SECOND = [1.0] * 20
WAITS = {
    "no ages known": (1, 4, SECOND, [], 0.25),
    "all fresh": (1, 4, SECOND, [0.0] * 4, 0.25),
    "near their end": (1, 4, EVEN, [9.0] * 4, 2.5),
    "the only slot for long": (1, 1, SECOND, [20.0], 20.0),
    "two after a long one": (2, 1, SECOND, [20.0], 21.0),
    "all slots for long": (1, 4, SECOND, [20.0] * 4, 5.0),
    "all slots for long, and many wait": (40, 4, SECOND, [20.0] * 4, 29.0),
    "one slot of four for long": (3, 4, SECOND, [20.0, 0.0, 0.0, 0.0], 3 / 3.05),
    "a sample of many slots": (1, 64, SECOND, [20.0] * 32, 20 / 64),
    "runs that take no time": (3, 1, [0.0], [0.0], 0.0),
}


@pytest.mark.parametrize(("turns", "slots", "durations", "ages", "seconds"), WAITS.values(), ids=WAITS)
def test_runs_without_an_end_in_sight_make_the_wait_longer(
    turns: int, slots: int, durations: Sequence[float], ages: Sequence[float], seconds: float
) -> None:
    wait = estimated_wait(turns, slots, durations, remaining_seconds(ages, durations))
    assert wait.p50 == pytest.approx(seconds)
    assert wait.p90 >= wait.p50


def test_older_runs_never_make_the_wait_shorter() -> None:
    waits = [estimated_wait(3, 2, TAILED, remaining_seconds([age, age], TAILED)).p50 for age in (0, 1, 5, 50, 99, 200)]
    assert waits[0] == min(waits)
    assert waits[-1] == max(waits)
