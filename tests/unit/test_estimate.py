"""How long a run waits, from what the last runs took."""

import pytest

from backplane.queue.estimate import Wait, estimated_wait


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
