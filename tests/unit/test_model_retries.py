"""Whether a call of a model is made again, and when."""

from datetime import UTC, datetime

import pytest

from backplane.domain.retry import retry_after
from backplane.errors import ModelError
from worker.llm.base import (
    ModelContextTooLong,
    ModelOutputInvalid,
    ModelOutputTooLong,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
)
from worker.llm.retries import CallRetryPolicy, pause_before_next

POLICY = CallRetryPolicy(retries=3, max_seconds=60)
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("kind", [ModelUnavailable, ModelTimeout, ModelRateLimited, ModelOutputInvalid])
def test_what_may_pass_is_tried_again_so_often_and_no_more(kind: type[ModelError]) -> None:
    pauses = [pause_before_next(kind("no"), tries, POLICY, jitter=0.0) for tries in (1, 2, 3, 4)]
    assert pauses == [0.25, 0.5, 1.0, None]


@pytest.mark.parametrize("kind", [ModelRefused, ModelContextTooLong, ModelOutputTooLong])
def test_what_stays_the_same_is_not_tried_again(kind: type[ModelError]) -> None:
    assert pause_before_next(kind("no"), 1, POLICY, jitter=0.0) is None


def test_pauses_have_a_limit_and_jitter() -> None:
    policy = CallRetryPolicy(retries=2_000, max_seconds=60)
    assert pause_before_next(ModelUnavailable("no"), 1_500, policy, jitter=0.0) == 30
    assert pause_before_next(ModelUnavailable("no"), 1_500, policy, jitter=0.5) == 45


@pytest.mark.parametrize(("asked", "pause"), [(0.0, 0.0), (7.5, 7.5), (3600.0, 60.0), (float("inf"), 60.0)])
def test_a_server_says_when_but_not_for_how_long_at_most(asked: float, pause: float) -> None:
    error = ModelRateLimited("no", retry_after=asked)
    assert pause_before_next(error, 1, POLICY, jitter=0.9) == pause


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("inf", float("inf")),
        ("nan", None),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("tomorrow", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_time(header: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": header}, NOW) == seconds


def test_a_server_need_not_say_when() -> None:
    assert retry_after({}, NOW) is None
