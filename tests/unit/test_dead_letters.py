"""Which failures an operator has to look at, and what of a traceback is kept."""

import time

import pytest

from backplane.domain.dead_letters import TRACEBACK_MAX_CHARS, DeadReason, dead_reason, kept_traceback
from backplane.domain.runs import RunError


@pytest.mark.parametrize(
    ("code", "retryable", "reason"),
    [
        ("command_failed", False, None),
        ("invalid_plan", False, None),
        ("run_timeout", False, None),
        ("command_failed", True, DeadReason.RETRIES_EXHAUSTED),
        ("part_unavailable", True, DeadReason.RETRIES_EXHAUSTED),
        ("worker_lost", False, DeadReason.POISON),
        ("internal_error", True, DeadReason.INTERNAL_ERROR),
        ("internal_error", False, DeadReason.INTERNAL_ERROR),
    ],
)
def test_a_dead_letter_is_what_its_user_could_not_have_mended(
    code: str, retryable: bool, reason: DeadReason | None
) -> None:
    assert dead_reason(RunError(code, "it failed", retryable=retryable)) is reason


def test_a_traceback_that_fits_is_kept_as_it_is() -> None:
    text = "x" * TRACEBACK_MAX_CHARS
    assert kept_traceback(text) == text


def test_of_a_long_traceback_the_end_is_kept_because_it_has_the_error() -> None:
    kept = kept_traceback("a" * 7 + "b" * (TRACEBACK_MAX_CHARS - 5) + "Error")
    first, rest = kept.split("\n")
    assert first == "… 7 characters before this are left out"
    assert (len(rest), rest[0], rest[-5:]) == (TRACEBACK_MAX_CHARS, "b", "Error")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("postgresql://ada:hunter2@db:5432/x refused", "postgresql://ada:***@db:5432/x refused"),
        ("cannot reach redis://:hunter2@127.0.0.1:1/0", "cannot reach redis://:***@127.0.0.1:1/0"),
        ("Authorization: Bearer agt_hunter2-_x.", "Authorization: Bearer agt_***."),
        ("https://example.org/a:b?mail=a@b.org", "https://example.org/a:b?mail=a@b.org"),
        ('File "a.py", line 1', 'File "a.py", line 1'),
    ],
)
def test_a_kept_traceback_has_no_passwords_and_no_tokens(text: str, kept: str) -> None:
    assert kept_traceback(text) == kept


@pytest.mark.parametrize("part", ["a.", "a://", "a://a:", "://:", "agt_", "x"])
def test_a_traceback_of_many_megabytes_is_kept_in_no_time(part: str) -> None:
    began = time.monotonic()
    kept = kept_traceback(part * 2_000_000)
    assert time.monotonic() - began < 1.0
    assert len(kept) < TRACEBACK_MAX_CHARS + 100
