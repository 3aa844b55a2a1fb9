"""What follows from what a step may have done outside: the decision that every layer asks."""

from dataclasses import replace
from typing import Any

import pytest

from backplane.domain.plans import Plan, parse_plan
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import Forbidden, RateLimited
from tests.made_tools import tool
from tests.submitted import plan as plan_of
from worker.steps import effects as step_effects
from worker.steps.effects import Next
from worker.tools.base import Effect, Risk, Tool, ToolResult

STARTED, CHANGING, COMPLETED, FAILED = (
    StepStatus.STARTED,
    StepStatus.CHANGING,
    StepStatus.COMPLETED,
    StepStatus.FAILED,
)
NONE, ANSWERED, POSSIBLE, CERTAIN = Effect.NONE, Effect.ANSWERED, Effect.POSSIBLE, Effect.CERTAIN


FILES, COMMAND = tool(), tool(risk=Risk.MEDIUM)
OUTSIDE = tool(risk=Risk.HIGH)
REQUEST = tool(risk=Risk.HIGH, announces_changes=True)
REMOTE = tool(risk=Risk.MEDIUM, changes_outside=True, announces_changes=True)
READS = tool(risk=Risk.MEDIUM, changes_outside=False)


@pytest.mark.parametrize(
    ("effect", "is_repeatable", "follows"),
    [
        (NONE, False, Next.AGAIN),
        (ANSWERED, False, Next.FAILED),
        (POSSIBLE, False, Next.ASK),
        (CERTAIN, False, Next.ASK),
        *((effect, True, Next.AGAIN) for effect in Effect),
    ],
)
def test_only_what_did_nothing_or_may_be_repeated_is_done_again(
    effect: Effect, is_repeatable: bool, follows: Next
) -> None:
    assert step_effects.after(effect, is_repeatable=is_repeatable) is follows


@pytest.mark.parametrize(
    ("of", "status", "isolated", "effect"),
    [
        (FILES, STARTED, True, NONE),
        (FILES, STARTED, False, POSSIBLE),
        (FILES, CHANGING, True, POSSIBLE),
        (COMMAND, STARTED, True, NONE),
        (COMMAND, STARTED, False, POSSIBLE),
        (OUTSIDE, STARTED, True, POSSIBLE),
        (REQUEST, STARTED, True, NONE),
        (REQUEST, STARTED, False, NONE),
        (REQUEST, CHANGING, True, POSSIBLE),
        (REMOTE, STARTED, True, NONE),
        (REMOTE, CHANGING, True, POSSIBLE),
    ],
)
def test_a_call_that_was_cut_off_may_have_done_what_its_tool_could_have_done_by_then(
    of: Tool, status: StepStatus, isolated: bool, effect: Effect
) -> None:
    assert step_effects.of_cut_off(of, status, isolated=isolated) is effect


@pytest.mark.parametrize(
    ("of", "said", "status", "isolated", "effect"),
    [
        (FILES, None, CHANGING, True, NONE),
        (COMMAND, None, STARTED, True, NONE),
        (COMMAND, None, STARTED, False, ANSWERED),
        (READS, None, STARTED, False, NONE),
        (OUTSIDE, None, STARTED, True, ANSWERED),
        (REQUEST, None, STARTED, True, NONE),
        (REQUEST, None, CHANGING, True, ANSWERED),
        (REMOTE, None, CHANGING, True, ANSWERED),
        *((OUTSIDE, effect, CHANGING, True, effect) for effect in Effect),
    ],
)
def test_what_a_tool_says_of_its_failure_counts_and_else_what_it_could_have_done(
    of: Tool, said: Effect | None, status: StepStatus, isolated: bool, effect: Effect
) -> None:
    result = ToolResult(1, effect=said)
    assert step_effects.of_result(of, result, status, isolated=isolated) is effect


@pytest.mark.parametrize(
    ("of", "error", "status", "effect"),
    [
        (FILES, Forbidden("no"), CHANGING, NONE),
        (OUTSIDE, Forbidden("no"), STARTED, ANSWERED),
        (OUTSIDE, Forbidden("no"), CHANGING, POSSIBLE),
        (REQUEST, Forbidden("no"), STARTED, NONE),
        (REQUEST, Forbidden("no"), CHANGING, POSSIBLE),
        (OUTSIDE, RateLimited("later", retry_after=1), STARTED, POSSIBLE),
        (REQUEST, RateLimited("later", retry_after=1), STARTED, NONE),
    ],
)
def test_an_error_that_a_tool_lets_pass_is_judged_by_how_far_it_was(
    of: Tool, error: Any, status: StepStatus, effect: Effect
) -> None:
    assert step_effects.of_error(of, error, status, isolated=True) is effect


# --- steps below a step ---


def record(id: str, tool: str, status: StepStatus, result: dict[str, Any] | None = None) -> StepRecord:
    return StepRecord(id, 0, "", tool, status, 1, None, None, result)


def below(parent: str, round: int, tool: str, *values: Any) -> StepRecord:
    return replace(record(f"{parent}/{round}.1.1", tool, *values), parent=parent, round=round)


TOOLS = {"shell": COMMAND, "request": REQUEST, "fetch": tool(risk=Risk.MEDIUM, changes_outside=False, repeatable=True)}


@pytest.mark.parametrize(
    ("one", "effect"),
    [
        (below("a", 1, "shell", COMPLETED), NONE),
        (below("a", 1, "fetch", COMPLETED), NONE),
        (below("a", 1, "request", COMPLETED), ANSWERED),
        (below("a", 1, "request", CHANGING), ANSWERED),
        (below("a", 1, "request", StepStatus.UNCERTAIN), ANSWERED),
        (below("a", 1, "request", FAILED, {}), NONE),
        (below("a", 1, "request", FAILED, {"effect": "possible"}), ANSWERED),
        (below("a", 1, "request", StepStatus.PENDING), NONE),
        (below("a", 1, "gone", COMPLETED), ANSWERED),
        (below("a", 0, "request", COMPLETED), NONE),
        (below("ab", 1, "request", COMPLETED), NONE),
    ],
)
def test_a_try_has_done_what_the_steps_below_it_have_done(one: StepRecord, effect: Effect) -> None:
    assert step_effects.of_steps_below("a", [one], TOOLS.get, isolated=True, round=1) is effect


@pytest.mark.parametrize(
    ("status", "parent", "round", "named"),
    [
        (FAILED, "a", 0, "a"),
        (StepStatus.PENDING, "a", 3, "a"),
        (COMPLETED, "a", 0, None),
        (FAILED, "b", 0, None),
    ],
)
def test_a_step_that_is_not_completed_and_has_effects_below_it_is_named(
    status: StepStatus, parent: str, round: int, named: str | None
) -> None:
    made: Plan = parse_plan(plan_of({"id": "a", "tool": "agent"}))
    records = [record("a", "agent", status), below(parent, round, "request", COMPLETED)]
    assert step_effects.step_with_effects_below(made, records, TOOLS.get, isolated=True) == named


# --- in words ---


def test_a_question_names_all_steps_and_says_how_to_answer() -> None:
    one = step_effects.question(["a"], "the answer's status is 500.")
    assert one.startswith("step 'a' may have happened: the answer's status is 500. Look ")
    assert 'uncertain_step "repeat" or "done"' in one
    assert step_effects.question(["a", "b"], "x").startswith("each of the steps 'a', 'b' may have happened: x. ")
    assert "happened, and then failed" in step_effects.question(["a"], "x", CERTAIN)


def test_an_error_that_only_a_person_may_have_tried_again_is_not_retryable_and_says_so() -> None:
    error = step_effects.not_tried_again(RunError("c", "it failed", True, "a"), OUTSIDE)
    assert (error.code, error.retryable, error.step) == ("c", False, "a")
    assert error.message.startswith("it failed. It is not tried again by itself")


def test_a_fault_is_that_of_the_platform_or_of_the_named_plug_in_and_repeats_no_words_of_it() -> None:
    ours, theirs = OUTSIDE, tool()
    theirs.package = "bank-tools 1.2"
    assert step_effects.fault_of(ours, ValueError("secret")).code == "internal_error"
    fault = step_effects.fault_of(theirs, ValueError("secret"))
    assert (fault.code, fault.retryable) == ("plugin_failed", True)
    assert "bank-tools 1.2, not of the platform" in fault.message
    assert "secret" not in fault.message
