"""A run's token bucket of log lines."""

from hypothesis import given
from hypothesis import strategies as st

from worker.steps.output import TokenBucket


def taken(bucket: TokenBucket, now: float, tries: int = 1000) -> int:
    return sum(bucket.take(now) for _ in range(tries))


def test_so_many_as_the_burst_may_be_taken_at_once() -> None:
    assert taken(TokenBucket(10, 25, now=100.0), now=100.0) == 25


def test_what_was_taken_comes_back_at_the_rate() -> None:
    bucket = TokenBucket(10, 25, now=0.0)
    taken(bucket, now=0.0)
    assert taken(bucket, now=0.05) == 0
    assert taken(bucket, now=0.1) == 1
    assert taken(bucket, now=1.1) == 10


def test_silence_gathers_no_more_than_the_burst() -> None:
    bucket = TokenBucket(10, 25, now=0.0)
    taken(bucket, now=0.0)
    assert taken(bucket, now=1_000_000.0) == 25


def test_a_rate_of_nothing_is_no_limit() -> None:
    assert taken(TokenBucket(0, 1, now=0.0), now=0.0) == 1000


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.floats(0, 10), max_size=200))
def test_never_more_than_the_burst_and_what_came_back(rate: int, burst: int, times: list[float]) -> None:
    """Whatever the clock does."""
    bucket = TokenBucket(rate, burst, now=0.0)
    assert sum(bucket.take(now) for now in times) <= burst + rate * max(times, default=0.0) + 1e-6
