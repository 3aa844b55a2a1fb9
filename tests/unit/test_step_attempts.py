"""What follows from a call of a tool that has ended: a table of cases for the pure decisions of the step runner."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.plans import parse_plan
from backplane.domain.retry import RetryPolicy
from backplane.domain.runs import RunError
from backplane.domain.steps import StepStatus, pending_steps
from backplane.errors import BudgetExhausted, Forbidden, Superseded, Unavailable
from tests.made_tools import tool
from worker.run.interruption import Cause, Interrupted
from worker.steps.attempt import (
    AskWhetherDone,
    Attempt,
    Broken,
    CallEnded,
    CutOff,
    Facts,
    NeedsAnswer,
    Suspend,
    WaitForPart,
    decide,
    is_in_doubt,
    next_try,
)
from worker.steps.effects import Next
from worker.steps.outcomes import StepFailed, StepUncertain, Suspended, ToolFault
from worker.steps.supervisor import graver, startable
from worker.tools.base import Effect, NeedsPerson, Risk, Tool, ToolResult

STARTED, CHANGING = StepStatus.STARTED, StepStatus.CHANGING


FILES, OUTSIDE, AGENT = tool(), tool(risk=Risk.HIGH), tool(delegates=True, repeatable=True)


def facts(of: Tool = FILES, *, repeatable: bool = False, below: Effect = Effect.NONE) -> Facts:
    return Facts(of, repeatable, repeatable, is_isolated=True, below=below)


def gave(result: ToolResult, status: StepStatus = STARTED) -> Attempt:
    return Attempt(status, 1.0, result=result)


def raised(failure: Exception | asyncio.CancelledError, status: StepStatus = STARTED, **more: Any) -> Attempt:
    return Attempt(status, 1.0, failure=failure, **more)


def away(part: str) -> Unavailable:
    return Unavailable(f"{part} is away", part=part)


DECISION = Decision("d", "r", "u", "a", DecisionKind.QUESTION, {}, DecisionStatus.PENDING, datetime.now(UTC))


# --- what became of it ---


def test_a_call_that_gave_a_good_result_has_ended_without_an_error() -> None:
    result = ToolResult()
    assert decide(gave(result), facts()) == CallEnded(result)


@pytest.mark.parametrize(
    ("result", "of", "repeatable", "effect", "follows"),
    [
        (ToolResult(3), FILES, False, Effect.NONE, Next.AGAIN),
        (ToolResult(3), OUTSIDE, False, Effect.ANSWERED, Next.FAILED),
        (ToolResult(3), OUTSIDE, True, Effect.ANSWERED, Next.AGAIN),
        (ToolResult(1, effect=Effect.CERTAIN), OUTSIDE, False, Effect.CERTAIN, Next.ASK),
    ],
)
def test_a_call_that_gave_a_bad_result_is_judged_by_its_effect(
    result: ToolResult, of: Tool, repeatable: bool, effect: Effect, follows: Next
) -> None:
    verdict = decide(gave(result), facts(of, repeatable=repeatable))
    assert isinstance(verdict, CallEnded)
    assert (verdict.effect, verdict.follows) == (effect, follows)
    assert verdict.error is not None
    assert verdict.error.code == "step_failed"


@pytest.mark.parametrize(
    ("below", "repeatable", "follows"),
    [
        (Effect.NONE, False, Next.AGAIN),
        (Effect.ANSWERED, False, Next.FAILED),
        (Effect.ANSWERED, True, Next.AGAIN),
    ],
)
def test_a_step_with_steps_below_it_is_judged_by_what_those_have_done(
    below: Effect, repeatable: bool, follows: Next
) -> None:
    verdict = decide(gave(ToolResult(1)), facts(AGENT, repeatable=repeatable, below=below))
    assert isinstance(verdict, CallEnded)
    assert verdict.follows is follows


def test_an_error_that_a_tool_let_pass_is_an_end_with_that_error() -> None:
    verdict = decide(raised(Forbidden("not yours")), facts())
    assert isinstance(verdict, CallEnded)
    assert verdict.error == RunError("forbidden", "not yours", Forbidden.retryable)


def test_a_run_that_another_worker_has_writes_nothing_more() -> None:
    with pytest.raises(Superseded):
        decide(raised(Superseded("another worker")), facts())


@pytest.mark.parametrize(
    ("failure", "cause"),
    [(Interrupted(Cause.DRAINED), Cause.DRAINED), (asyncio.CancelledError(), Cause.CANCELLED)],
)
def test_a_call_that_was_interrupted_is_cut_off_by_its_cause(
    failure: Exception | asyncio.CancelledError, cause: Cause
) -> None:
    assert decide(raised(failure, cause=Cause.CANCELLED), facts()) == CutOff(failure, cause)  # type: ignore[arg-type]


def test_a_tool_that_needs_a_person_suspends_its_step_with_a_question() -> None:
    needs = NeedsPerson(DecisionKind.QUESTION, {"question": "which?"})
    assert decide(raised(needs), facts()) == NeedsAnswer(needs)


@pytest.mark.parametrize(
    "failure",
    [
        Suspended(DECISION),
        StepUncertain(RunError("step_uncertain", "who knows")),
        BudgetExhausted("no more", account="run:tokens", needed=1, left=0),
    ],
)
def test_what_stops_a_step_below_suspends_the_step_above(failure: Exception) -> None:
    assert decide(raised(failure), facts(AGENT)) == Suspend(failure)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "of", "status", "kind"),
    [
        ("database", FILES, STARTED, WaitForPart),
        ("database", OUTSIDE, CHANGING, AskWhetherDone),
        ("sandbox", OUTSIDE, CHANGING, WaitForPart),
        ("mcp", FILES, STARTED, CallEnded),
    ],
)
def test_a_part_that_is_away_is_waited_for_where_the_call_may_be_made_again(
    part: str, of: Tool, status: StepStatus, kind: type
) -> None:
    assert isinstance(decide(raised(away(part), status), facts(of)), kind)


def test_a_fault_of_a_tool_that_may_be_repeated_breaks_the_attempt() -> None:
    fault = ValueError("what is this")
    verdict = decide(raised(fault), facts())
    assert isinstance(verdict, Broken)
    assert verdict.source is fault
    assert "what is this" not in verdict.error.error.message
    assert "what is this" in verdict.error.trace


def test_a_fault_of_a_tool_that_may_have_changed_something_is_asked_about() -> None:
    verdict = decide(raised(ValueError("what is this"), CHANGING), facts(OUTSIDE))
    assert isinstance(verdict, AskWhetherDone)
    assert "what is this" not in verdict.reason
    assert "what is this" in verdict.trace


def test_a_fault_of_a_step_below_breaks_the_step_above_by_the_same_error() -> None:
    fault = ToolFault(RunError("internal_error", "a fault"), "trace")
    assert decide(raised(fault), facts(AGENT)) == Broken(fault)


@pytest.mark.parametrize("status", list(StepStatus))
def test_only_a_call_whose_changes_may_be_on_their_way_is_in_doubt(status: StepStatus) -> None:
    assert is_in_doubt(FILES, status, is_repeatable=False, is_isolated=True) is (status is CHANGING)
    assert not is_in_doubt(FILES, status, is_repeatable=True, is_isolated=True)


# --- whether it is made again ---

ERROR = RunError("step_failed", "exit code 3", step="a")


def tried(follows: Next, error: RunError = ERROR, number: int = 1, retries: int = 1) -> tuple[RunError, float | None]:
    ended = CallEnded(ToolResult(3), error, Effect.ANSWERED, follows)
    policy = RetryPolicy(retries, base=2.0, longest=300.0)
    return next_try(ended, error, OUTSIDE, number, policy, draw=0.0, patience_seconds=60.0)


@pytest.mark.parametrize(("number", "pause"), [(1, 1.0), (2, 2.0), (3, None)])
def test_a_try_that_did_nothing_is_made_again_as_often_as_its_policy_says(number: int, pause: float | None) -> None:
    assert tried(Next.AGAIN, number=number, retries=2) == (ERROR, pause)


@pytest.mark.parametrize(("asked", "pause"), [(60.0, 60.0), (61.0, None)])
def test_a_server_makes_a_step_wait_for_no_longer_than_the_step_has(asked: float, pause: float | None) -> None:
    error = RunError("rate_limited", "later", True, "a", retry_after=asked)
    assert tried(Next.AGAIN, error) == (error, pause)


def test_a_try_that_has_changed_something_is_not_made_again_and_says_why() -> None:
    error, pause = tried(Next.FAILED)
    assert pause is None
    assert error.message.startswith("exit code 3. It is not tried again by itself")


def test_a_try_that_would_not_be_made_again_anyway_keeps_its_error() -> None:
    assert tried(Next.FAILED, retries=0) == (ERROR, None)


# --- which of two errors stops a run ---

GRAVER = [
    Superseded("another worker"),
    RuntimeError("a fault"),
    Interrupted(Cause.DRAINED),
    StepUncertain(RunError("step_uncertain", "who knows")),
    StepFailed(ERROR),
]


@pytest.mark.parametrize(("first", "second"), [(i, j) for i in range(5) for j in range(5) if i < j])
def test_of_two_errors_the_graver_one_stops_the_run_whichever_came_first(first: int, second: int) -> None:
    assert graver(GRAVER[first], GRAVER[second]) is GRAVER[first]
    assert graver(GRAVER[second], GRAVER[first]) is GRAVER[first]


def test_of_two_errors_of_the_same_gravity_the_first_stops_the_run() -> None:
    one, other = StepFailed(ERROR), StepFailed(ERROR)
    assert graver(one, other) is one
    assert graver(None, other) is other


# --- which steps may be started ---


def started(done: set[str], busy: set[str]) -> list[str]:
    plan = parse_plan(
        {
            "steps": [
                {"id": "a", "tool": "any", "arguments": {}},
                {"id": "b", "tool": "any", "arguments": {}, "needs": []},
                {"id": "c", "tool": "any", "arguments": {}, "needs": ["a", "b"]},
            ]
        }
    )
    records = {
        record.step_id: replace(record, status=StepStatus.COMPLETED) if record.step_id in done else record
        for record in pending_steps(plan)
    }
    return [step.id for step in startable(plan.ordered(), plan.requirements(), records, busy)]


@pytest.mark.parametrize(
    ("done", "busy", "may_start"),
    [
        (set(), set(), ["a", "b"]),
        (set(), {"a"}, ["b"]),
        ({"a"}, set(), ["b"]),
        ({"a", "b"}, set(), ["c"]),
        ({"a", "b"}, {"c"}, []),
        ({"a", "b", "c"}, set(), []),
    ],
)
def test_a_step_may_be_started_once_all_that_it_needs_is_done(
    done: set[str], busy: set[str], may_start: list[str]
) -> None:
    assert started(done, busy) == may_start
