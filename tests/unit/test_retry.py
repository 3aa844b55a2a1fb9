"""When something is tried again, and when it is not."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.domain.retry import RetryPolicy, retry_after

POLICY = RetryPolicy(retries=3, base=2.0, longest=10.0)
DRAWS = st.floats(0, 1, exclude_max=True)


def test_there_are_as_many_further_tries_as_the_policy_says() -> None:
    tried_again = [POLICY.pause(attempt, retryable=True, draw=0.5) is not None for attempt in (1, 2, 3, 4)]
    assert tried_again == [True, True, True, False]


def test_what_cannot_succeed_later_is_not_tried_again() -> None:
    assert POLICY.pause(1, retryable=False, draw=0.5) is None


def test_pauses_double_up_to_the_longest() -> None:
    many = RetryPolicy(retries=10, base=2.0, longest=10.0)
    almost_one = 1 - 2**-53
    spans = [many.pause(attempt, retryable=True, draw=almost_one) for attempt in (1, 2, 3, 4, 5)]
    assert [round(span or 0) for span in spans] == [2, 4, 8, 10, 10]


@given(st.integers(1, 10_000), DRAWS)
def test_a_pause_lies_in_the_upper_half_of_its_span(attempt: int, draw: float) -> None:
    policy = RetryPolicy(retries=10_000, base=0.5, longest=60.0)
    span = min(60.0, 0.5 * 2.0 ** min(attempt - 1, 20))
    pause = policy.pause(attempt, retryable=True, draw=draw)
    assert pause is not None
    assert span / 2 <= pause <= span


def test_without_retries_the_first_failure_is_the_last() -> None:
    assert RetryPolicy(retries=0, base=1, longest=1).pause(1, retryable=True, draw=0.0) is None


@pytest.mark.parametrize(
    ("asked", "pause"),
    [(None, 2.0), (0.0, 2.0), (1.0, 2.0), (5.0, 5.0), (10.0, 10.0), (10.1, None), (float("inf"), None)],
)
def test_a_pause_is_as_long_as_the_other_side_asks_and_where_that_is_too_long_there_is_no_further_try(
    asked: float | None, pause: float | None
) -> None:
    assert RetryPolicy(retries=3, base=4.0, longest=10.0).pause(1, retryable=True, draw=0.0, asked=asked) == pause


def test_what_is_asked_for_makes_nothing_be_tried_that_would_not_be() -> None:
    assert POLICY.pause(1, retryable=False, draw=0.0, asked=1.0) is None
    assert POLICY.pause(4, retryable=True, draw=0.0, asked=1.0) is None


NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("Fri, 01 May 2026 12:00:30 GMT", 30.0),
        ("Fri, 01 May 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", math.inf),
        (None, None),
    ],
)
def test_how_long_a_server_asks_to_be_left_alone_is_read_in_seconds_or_as_a_time(
    said: str | None, seconds: float | None
) -> None:
    assert retry_after({} if said is None else {"retry-after": said}, NOW) == seconds
