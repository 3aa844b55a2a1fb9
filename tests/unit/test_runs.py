"""Which states a run can take, and how runs are named."""

import time
import uuid
from itertools import product

import pytest

from backplane.domain.runs import MESSAGE_CHARS, RunError, RunStatus, check_transition, new_run_id
from backplane.errors import TransitionNotAllowed

ALLOWED = {
    ("created", "queued"),
    ("created", "cancelled"),
    ("queued", "running"),
    ("queued", "cancelled"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "waiting"),
    ("running", "queued"),
    ("waiting", "queued"),
    ("waiting", "cancelled"),
    ("failed", "queued"),
    ("completed", "queued"),
}
"""Written out a second time, so that nobody changes what a run can become by a slip."""


@pytest.mark.parametrize(("old", "new"), [pair for pair in product(RunStatus, RunStatus) if pair in ALLOWED])
def test_a_transition_that_is_drawn_is_allowed(old: RunStatus, new: RunStatus) -> None:
    check_transition("run-1", old, new)


@pytest.mark.parametrize(("old", "new"), [pair for pair in product(RunStatus, RunStatus) if pair not in ALLOWED])
def test_a_transition_that_is_not_drawn_raises(old: RunStatus, new: RunStatus) -> None:
    with pytest.raises(TransitionNotAllowed, match=f"run-1 is {old} and cannot become {new}"):
        check_transition("run-1", old, new)


def test_the_error_names_what_is_possible_instead() -> None:
    with pytest.raises(TransitionNotAllowed, match="it can become cancelled, queued"):
        check_transition("run-1", RunStatus.WAITING, RunStatus.COMPLETED)


def test_a_cancelled_run_stays_over() -> None:
    with pytest.raises(TransitionNotAllowed, match="nothing: it is over"):
        check_transition("run-1", RunStatus.CANCELLED, RunStatus.QUEUED)


def test_run_ids_sort_by_the_time_they_were_made() -> None:
    ids = []
    for moment in range(1_700_000_000_000, 1_700_000_000_050):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time_ns", lambda at=moment: at * 1_000_000)
            ids.append(new_run_id())
    assert ids == sorted(ids)


def test_a_run_id_is_a_uuid_of_version_7_and_never_the_same_twice() -> None:
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {(uuid.UUID(run_id).version, uuid.UUID(run_id).variant) for run_id in ids} == {(7, uuid.RFC_4122)}


def test_of_an_error_that_names_something_endless_the_begin_and_the_end_are_kept() -> None:
    whole = RunError("invalid_plan", "x" * MESSAGE_CHARS)
    assert whole.as_dict()["message"] == whole.message
    endless = RunError("invalid_plan", f"plan: {'x' * 10**6} is not taken").as_dict()["message"]
    assert len(endless) == MESSAGE_CHARS + 3
    assert (endless[:7], endless[-12:]) == ("plan: x", "is not taken")
