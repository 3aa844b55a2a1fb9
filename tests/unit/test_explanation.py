"""Why a run waits, from what is known of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.explanation import Situation, in_words, reasons, waiting_seconds
from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.runs import Priority, Run, RunError, RunStatus
from backplane.limits.slots.base import WaitingForModel
from backplane.queue.base import Gate, Standing, Statistics, Whereabouts
from backplane.queue.estimate import Wait

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(status: RunStatus = RunStatus.QUEUED, **values: Any) -> Run:
    given: dict[str, Any] = {
        "id": "run-1",
        "user_id": "user-1",
        "status": status,
        "priority": Priority.NORMAL,
        "prompt": "a test",
        "created_at": NOW,
        "timeout_seconds": 60,
        "max_retries": 3,
        **values,
    }
    return Run(**given)


def statistics(*, workers: int = 1, slots: int = 2, running: int = 2) -> Statistics:
    none = dict.fromkeys(Priority, 0)
    return Statistics(none, none, running, 0, 0, workers, slots, (), 120.0)


def standing(position: int = 1, gate: Gate | None = None, cap: int = 0) -> Standing:
    return Standing(position, Wait(1.0, 2.0), gate, cap)


def codes(of: Run, situation: Situation) -> list[str]:
    return [reason.code for reason in reasons(of, situation, NOW)]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (RunStatus.CREATED, "not_started"),
        (RunStatus.RUNNING, "running"),
        (RunStatus.WAITING, "waits_for_person"),
        (RunStatus.COMPLETED, "over"),
        (RunStatus.FAILED, "over"),
        (RunStatus.CANCELLED, "over"),
    ],
)
def test_a_run_that_is_not_queued_has_one_reason(status: RunStatus, code: str) -> None:
    assert codes(run(status), Situation(statistics(), None, None)) == [code]


def test_a_running_run_that_is_to_end_says_so() -> None:
    assert codes(run(RunStatus.RUNNING, cancel_requested_at=NOW), Situation(None, None, None)) == ["being_cancelled"]


def waits_for(waiting: WaitingForModel) -> tuple[str, str]:
    running = run(RunStatus.RUNNING)
    found = reasons(running, Situation(statistics(), None, None, waiting), NOW)
    return found[0].code, in_words(running, found)


def test_a_running_run_that_waits_for_a_model_server_says_how_many_are_before_it() -> None:
    waiting = WaitingForModel("slot", "ollama", "m", 3, NOW, None, waiting=17, slots=4)
    text = "The run waits: it waits for a slot of the model server ollama: place 3 of 17, all 4 are taken."
    assert waits_for(waiting) == ("waits_for_model_slot", text)


def test_a_running_run_that_waits_for_model_tokens_says_how_long() -> None:
    code, text = waits_for(WaitingForModel("tokens", "", "", None, NOW, 12.3))
    assert code == "waits_for_model_tokens"
    assert "for about 12 s" in text


def test_a_waiting_run_repeats_what_it_asks() -> None:
    asks = run(RunStatus.WAITING, error=RunError("step_uncertain", "did step 'b' happen?"))
    words = in_words(asks, reasons(asks, Situation(None, None, None), NOW))
    assert "did step 'b' happen?" in words
    assert "uncertain_step `done`, or with `repeat`" in words


def test_a_queue_that_does_not_answer_is_the_reason() -> None:
    assert codes(run(), Situation(None, None, None)) == ["queue_away"]


def test_the_next_attempt_is_explained_with_its_time_and_the_error_before() -> None:
    failed = run(attempt=2, error=RunError("part_unavailable", "the store was away"))
    [reason] = reasons(failed, Situation(statistics(), None, NOW + timedelta(seconds=8)), NOW)
    assert (reason.code, reason.text) == (
        "next_attempt",
        "attempt 2 begins in 8 s after it failed: the store was away",
    )


def test_a_run_whose_last_try_is_to_be_alone_says_why_it_does_not_begin() -> None:
    [reason] = reasons(run(), Situation(statistics(), None, NOW + timedelta(seconds=1), crashes=2), NOW)
    assert (reason.code, reason.text) == (
        "last_try_alone",
        "2 workers were lost while they carried it out, so its last try begins in a process that carries out nothing "
        "else; no such process is free, and it asks again in 1 s",
    )


def test_a_run_that_the_queue_does_not_know_yet_is_on_its_way() -> None:
    assert codes(run(), Situation(statistics(), None, None)) == ["on_its_way"]


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (Situation(statistics(running=1), standing(1), None), ["next"]),
        (Situation(statistics(), standing(1), None), ["no_free_slot"]),
        (Situation(statistics(), standing(3), None), ["no_free_slot", "runs_ahead"]),
        (Situation(statistics(workers=0, slots=0, running=0), standing(1), None), ["no_worker"]),
        (Situation(statistics(running=0), standing(2, Gate.USER, 2), None), ["user_cap", "runs_ahead"]),
        (Situation(statistics(running=0), standing(1, Gate.TIER, 2), None), ["tier_cap"]),
        (Situation(statistics(running=0), standing(1, Gate.RESOURCE, 2), None), ["resource_cap"]),
    ],
)
def test_a_queued_run_says_what_it_waits_for_the_nearest_first(situation: Situation, expected: list[str]) -> None:
    assert codes(run(resource="gpu"), situation) == expected


def test_the_words_have_every_reason() -> None:
    found = reasons(run(), Situation(statistics(), standing(3, Gate.USER, 2), None), NOW)
    assert in_words(run(), found) == (
        "The run waits: 2 runs of yours may be under way at once, and as many are; all 2 slots of 1 worker are taken; "
        "2 runs are taken before it."
    )


def test_only_a_queued_run_has_waited() -> None:
    since = NOW - timedelta(seconds=5)
    assert waiting_seconds(run(queued_at=since), NOW) == 5.0
    assert waiting_seconds(run(RunStatus.RUNNING, queued_at=since), NOW) is None


def test_a_clock_that_is_behind_makes_no_negative_wait() -> None:
    assert waiting_seconds(run(queued_at=NOW + timedelta(seconds=5)), NOW) == 0.0


@pytest.mark.parametrize(
    ("whereabouts", "waited_seconds", "code"),
    [
        (Whereabouts.CLAIMED, 60, "on_its_way"),
        (Whereabouts.UNKNOWN, 1, "on_its_way"),
        (Whereabouts.OVER, 1, "on_its_way"),
        (Whereabouts.UNKNOWN, 60, "lost_in_queue"),
        (Whereabouts.OVER, 60, "lost_in_queue"),
        (Whereabouts.LOST, 1, "lost_in_queue"),
        (None, 60, "on_its_way"),
    ],
)
def test_a_run_that_stands_nowhere_says_whether_it_is_on_its_way_or_lost(
    whereabouts: Whereabouts | None, waited_seconds: int, code: str
) -> None:
    waits = run(queued_at=NOW - timedelta(seconds=waited_seconds))
    assert codes(waits, Situation(statistics(), None, None, whereabouts=whereabouts)) == [code]


ASKED = {
    "none": ({}, "which uses shell {} ("),
    "short ones": ({"script": "make ü"}, 'which uses shell {"script": "make ü"} ('),
    "several lines": ({"script": "a\nb"}, 'which uses shell {"script": "a\\nb"} ('),
    "what a terminal obeys": ({"script": "\u202e\x9b2J"}, 'which uses shell {"script": "\\u202e\\x9b2J"} ('),
    "long ones": (
        {"script": "x" * 1000},
        f'which uses shell {{"script": "{"x" * 288}… (decision d-1)',
    ),
}


@pytest.mark.parametrize(("arguments", "shown"), ASKED.values(), ids=ASKED)
def test_a_run_that_waits_for_an_approval_shows_the_arguments(arguments: dict[str, Any], shown: str) -> None:
    asked = {"tool": "shell", "arguments": arguments, "reason": ""}
    decision = Decision(
        "d-1", "run-1", "user-1", "build", DecisionKind.APPROVAL, asked, DecisionStatus.PENDING, created_at=NOW
    )
    [reason] = reasons(run(RunStatus.WAITING), Situation(None, None, None, asked=(decision,)), NOW)
    assert f"step build is to be approved, {shown}" in reason.text


def test_a_reason_that_ends_with_a_stop_gets_no_second_one() -> None:
    failed = run(RunStatus.FAILED, error=RunError("worker_lost", "It was lost. Retry it."))
    words = in_words(failed, reasons(failed, Situation(None, None, None), NOW))
    assert words.endswith("Retry it.")
    assert not words.endswith("..")
