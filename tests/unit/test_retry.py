"""When something is tried again, and when it is not."""

from hypothesis import given
from hypothesis import strategies as st

from backplane.retry import RetryPolicy

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
