"""What is past its time, by the settings, and how its removal is cut into batches."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.domain.retention import EventSpan, Expired, batches
from controller.cleanup.retention import RetentionLimits

NOW = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("limits", "days"),
    [
        # The defaults: files and events go with their run, so there is nothing to do for them alone.
        (RetentionLimits(30, 30, 30, 30), {Expired.RUN: 30, Expired.UNSTARTED_RUN: 30}),
        (RetentionLimits(30, 0, 7, 0), {Expired.RUN: 30, Expired.EVENTS: 7}),
        (RetentionLimits(30, 0, 0, 7), {Expired.RUN: 30, Expired.FILES: 7}),
        (RetentionLimits(7, 0, 30, 30), {Expired.RUN: 7}),
        (RetentionLimits(0, 0, 30, 7), {Expired.EVENTS: 30, Expired.FILES: 7}),
        (RetentionLimits(0, 0, 0, 0), {}),
        (RetentionLimits(0, 0.5, 0, 0), {Expired.UNSTARTED_RUN: 0.5}),
    ],
)
def test_each_limit_says_from_before_when_something_goes(limits: RetentionLimits, days: dict[Expired, float]) -> None:
    assert limits.due(NOW) == {expired: NOW - timedelta(days=limit) for expired, limit in days.items()}


@given(
    sizes=st.lists(st.integers(1, 30), max_size=8),
    size=st.integers(1, 20),
)
def test_batches_hold_every_event_once_in_order_and_none_is_too_large(sizes: list[int], size: int) -> None:
    spans = [EventSpan(f"run-{number}", 5, 5 + length) for number, length in enumerate(sizes)]
    cut = list(batches(spans, size))
    everything = [(span.run_id, number) for span in spans for number in range(span.first, span.last)]
    cut_up = [[(span.run_id, number) for span in batch for number in range(span.first, span.last)] for batch in cut]
    assert [event for batch in cut_up for event in batch] == everything
    assert all(len(batch) == size for batch in cut_up[:-1])
    assert all(1 <= len(batch) <= size for batch in cut_up)
