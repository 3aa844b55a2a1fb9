"""One call of a step's tool that has ended, and what follows from it: pure decisions.

`decide` says what became of the attempt, `next_try` whether one that failed is made again. Both ask
`worker.steps.effects` what may have happened outside, and nobody else. What is written and published then is the
runner's and the journal's.
"""

import asyncio
import traceback
from dataclasses import dataclass

from backplane.domain.retry import RetryPolicy
from backplane.domain.runs import RunError
from backplane.domain.steps import StepStatus
from backplane.errors import PLATFORM_PARTS, BudgetExhausted, PlatformError, Superseded, Unavailable
from worker.metrics import StepEnd
from worker.run.interruption import Cause, Interrupted
from worker.steps import effects as step_effects
from worker.steps.effects import Next
from worker.steps.outcomes import StepUncertain, Suspended, ToolFault
from worker.tools.base import Effect, NeedsPerson, Tool, ToolResult


@dataclass(frozen=True, slots=True)
class Attempt:
    """`result` is what the tool gave, or `failure` what it raised; one of the two is None. `status`: how far the
    journal has it, STARTED or CHANGING. `cause`: what has interrupted the run, if anything has."""

    status: StepStatus
    seconds: float
    result: ToolResult | None = None
    failure: Exception | asyncio.CancelledError | None = None
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decision depends on beside the attempt. `is_repeatable`: the plan or the tool says that the step may be
    carried out twice; `plan_says_repeatable`: the plan says so. `below`: what the sub-steps of this try have done
    outside."""

    tool: Tool
    is_repeatable: bool
    plan_says_repeatable: bool
    is_isolated: bool
    below: Effect = Effect.NONE


# --- what became of it ---


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call ended: well where `error` is None. Otherwise `effect` is what it has done outside, and `follows` is what
    follows from that."""

    result: ToolResult
    error: RunError | None = None
    effect: Effect = Effect.NONE
    follows: Next = Next.AGAIN

    @property
    def outcome(self) -> StepEnd:
        return "completed" if self.error is None else "failed"


@dataclass(frozen=True, slots=True)
class CutOff:
    """The run was interrupted, or the step above this one was. `error` is to be raised."""

    error: Interrupted | asyncio.CancelledError
    cause: Cause | None
    outcome: StepEnd = "interrupted"


@dataclass(frozen=True, slots=True)
class NeedsAnswer:
    """The tool needs a person before it can do anything."""

    needs: NeedsPerson
    outcome: StepEnd = "suspended"


@dataclass(frozen=True, slots=True)
class Suspend:
    """A sub-step waits, is in doubt, or has no budget. `error` is to be raised."""

    error: Suspended | StepUncertain | BudgetExhausted
    outcome: StepEnd = "suspended"


@dataclass(frozen=True, slots=True)
class WaitForPart:
    """A part of the platform is away, and the call may be made again when it is back."""

    error: Unavailable
    outcome: StepEnd = "unavailable"


@dataclass(frozen=True, slots=True)
class AskWhetherDone:
    """Nobody knows whether the step happened, and it must not happen twice. `trace`: the traceback of what the tool
    raised."""

    reason: str
    outcome: StepEnd
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """The tool raised an error that no tool may raise, and has done nothing that could not be repeated. `error` is to
    be raised."""

    error: ToolFault
    source: Exception | None = None
    outcome: StepEnd = "failed"


Verdict = CallEnded | CutOff | NeedsAnswer | Suspend | WaitForPart | AskWhetherDone | Broken


def decide(attempt: Attempt, facts: Facts) -> Verdict:
    """What follows from the attempt. Raises Superseded when the attempt ended by it: then nothing may be written any
    more."""
    match attempt.failure:
        case None:
            assert attempt.result is not None
            return _of_result(attempt.result, attempt.status, facts)
        case Superseded() as error:
            raise error
        case Interrupted() as error:
            return CutOff(error, error.cause)
        case asyncio.CancelledError() as error:
            return CutOff(error, attempt.cause)
        case NeedsPerson() as needs:
            return NeedsAnswer(needs)
        case Suspended() | StepUncertain() | BudgetExhausted() as error:
            return Suspend(error)
        case Unavailable() as error if error.part in PLATFORM_PARTS:
            # A sandbox that is away was never entered, or goes on with the same call when it is back.
            if error.part == "sandbox" or _may_be_repeated(attempt, facts):
                return WaitForPart(error)
            return AskWhetherDone(error.message, "unavailable")
        case PlatformError() as error:
            effect = step_effects.of_error(facts.tool, error, attempt.status, isolated=facts.is_isolated)
            failed = RunError(error.code, error.message, error.retryable)
            return _of_result(ToolResult(1, error=failed, effect=effect), attempt.status, facts)
        case ToolFault() as error:
            return Broken(error)
        case error:
            fault = step_effects.fault_of(facts.tool, error)
            trace = "".join(traceback.format_exception(error))
            if _may_be_repeated(attempt, facts):
                return Broken(ToolFault(fault, trace), error)
            return AskWhetherDone(fault.message, "failed", trace)


def next_try(
    ended: CallEnded,
    error: RunError,
    tool: Tool,
    number: int,
    policy: RetryPolicy,
    *,
    draw: float,
    patience_seconds: float,
) -> tuple[RunError, float | None]:
    """After a try that failed with `error` and about which nobody is asked: the error to keep, and the seconds until
    the next try; None: there is none. `number` counts the tries from 1, `draw` is in [0, 1). A server may ask to be
    left alone for up to `patience_seconds`."""
    asked = error.retry_after
    pause = policy.pause(number, retryable=(asked or 0.0) <= patience_seconds, draw=draw, asked=asked)
    if ended.follows is not Next.FAILED:
        return error, pause
    if pause is not None or error.retryable:
        error = step_effects.not_tried_again(error, tool)
    return error, None


def is_in_doubt(tool: Tool, status: StepStatus, *, is_repeatable: bool, is_isolated: bool) -> bool:
    """Whether a call that was cut off at this status may have happened, and must not happen twice."""
    if status not in (StepStatus.STARTED, StepStatus.CHANGING):
        return False
    effect = step_effects.of_cut_off(tool, status, isolated=is_isolated)
    return step_effects.after(effect, is_repeatable=is_repeatable) is Next.ASK


def _may_be_repeated(attempt: Attempt, facts: Facts) -> bool:
    effect = step_effects.of_cut_off(facts.tool, attempt.status, isolated=facts.is_isolated)
    return step_effects.after(effect, is_repeatable=facts.is_repeatable) is Next.AGAIN


def _of_result(result: ToolResult, status: StepStatus, facts: Facts) -> CallEnded:
    if result.exit_code == 0 and result.error is None:
        return CallEnded(result)
    error = result.error or RunError("step_failed", f"exit code {result.exit_code}")
    if facts.tool.delegates:
        # A tool that can be called again is called in the same try, and finds the sub-steps that it has done.
        return CallEnded(
            result, error, facts.below, step_effects.after(facts.below, is_repeatable=facts.plan_says_repeatable)
        )
    effect = step_effects.of_result(facts.tool, result, status, isolated=facts.is_isolated)
    return CallEnded(result, error, effect, step_effects.after(effect, is_repeatable=facts.is_repeatable))
