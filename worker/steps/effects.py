"""What a failed step may have done outside, and what follows from that: pure decisions.

One rule holds for every layer that could carry a step out once more (its own `retry`, the run's `max_retries`, the
worker that takes a lost run over, an agent's next try): an effect that cannot be repeated and may have happened is
never done again unless a person says so. The plan says so with `repeatable`, the operator for a tool of an MCP server,
and a person by the answer to an uncertain step.

What a tool knows of its own failure comes first. What it leaves open is judged here by what kind of tool it is and by
how far the journal has the step. No layer asks in any other way.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Any

from backplane.domain.plans import Plan
from backplane.domain.runs import RunError
from backplane.domain.steps import FINAL_FAILURE, StepRecord, StepStatus
from backplane.errors import PlatformError, Refused
from worker.tools.base import Effect, Risk, Tool, ToolResult


class Next(Enum):
    """`AGAIN`: it may be tried again, as often as its policies allow. `FAILED`: only a person may have it tried again.
    `ASK`: a person is asked whether it happened."""

    AGAIN = auto()
    FAILED = auto()
    ASK = auto()


def after(effect: Effect, *, is_repeatable: bool) -> Next:
    """What follows a try that ended with this effect. `is_repeatable`: the plan or the tool says that it may be done
    twice."""
    if is_repeatable or effect is Effect.NONE:
        return Next.AGAIN
    return Next.FAILED if effect is Effect.ANSWERED else Next.ASK


def may_change_outside(tool: Tool, *, isolated: bool) -> bool:
    """Whether the tool may change something outside. A command may, in a sandbox that is not isolated: it reaches the
    network."""
    if tool.changes_outside is not None:
        return tool.changes_outside
    return tool.risk >= (Risk.HIGH if isolated else Risk.MEDIUM)


def of_cut_off(tool: Tool, status: StepStatus, *, isolated: bool) -> Effect:
    """The effect of a call of which nobody knows how it ended: its worker was lost, or it raised an unexpected error.
    `status`: how far the journal has it, STARTED or CHANGING."""
    if status is StepStatus.STARTED:
        stays_inside = isolated and not may_change_outside(tool, isolated=isolated)
        if tool.announces_changes or stays_inside:
            return Effect.NONE
    return Effect.POSSIBLE


def of_result(tool: Tool, result: ToolResult, status: StepStatus, *, isolated: bool) -> Effect:
    """The effect of a failure that the tool has reported."""
    if result.effect is not None:
        return result.effect
    announced = tool.announces_changes and status is StepStatus.STARTED
    return Effect.NONE if announced or not may_change_outside(tool, isolated=isolated) else Effect.ANSWERED


def of_error(tool: Tool, error: PlatformError, status: StepStatus, *, isolated: bool) -> Effect:
    """The effect of an error that the tool raised. Unavailable of a part of the platform does not come here: it ends no
    try."""
    if not may_change_outside(tool, isolated=isolated):
        return Effect.NONE
    if status is StepStatus.STARTED and isinstance(error, Refused):
        # The tool checked its arguments before it did anything, unless it does not announce that it changes something.
        return Effect.NONE if tool.announces_changes else Effect.ANSWERED
    return of_cut_off(tool, status, isolated=isolated)


def of_steps_below(
    step_id: str,
    records: Iterable[StepRecord],
    tool_of: Callable[[str], Tool | None],
    *,
    isolated: bool,
    round: int | None = None,
) -> Effect:
    """The effect of a step's sub-steps, in this round (`ToolContext.round`) or in any. Another try has other sub-steps,
    which know nothing of these; so what these did outside is not done again by itself. A sub-step that is repeatable by
    its key alone counts too: in another try it has another key."""
    for record in records:
        if record.parent != step_id or (round is not None and record.round != round):
            continue
        tool = tool_of(record.tool)
        if tool is not None and (tool.repeatable or not may_change_outside(tool, isolated=isolated)):
            continue
        did_nothing = record.status is StepStatus.PENDING or (
            record.status is StepStatus.FAILED and kept_effect(record) is Effect.NONE
        )
        if not did_nothing:
            return Effect.ANSWERED
    return Effect.NONE


def step_with_effects_below(
    plan: Plan, records: Sequence[StepRecord], tool_of: Callable[[str], Tool | None], *, isolated: bool
) -> str | None:
    """The id of a step that is not completed, but has changed something outside by its sub-steps. A planner that makes
    another plan does not see those, and would have them done again."""
    completed = {record.step_id for record in records if record.status is StepStatus.COMPLETED}
    for step in plan.steps:
        if step.id not in completed and of_steps_below(step.id, records, tool_of, isolated=isolated) is not Effect.NONE:
            return step.id
    return None


def kept(effect: Effect, follows: Next) -> dict[str, Any]:
    """The fields of a failed step's result about its effect; none where nothing has happened."""
    values: dict[str, Any] = {} if effect is Effect.NONE else {"effect": effect.value}
    return values | ({FINAL_FAILURE: True} if follows is Next.FAILED else {})


def kept_effect(record: StepRecord) -> Effect:
    return Effect((record.result or {}).get("effect", Effect.NONE))


# --- in words ---


CUT_OFF = "its worker was lost or stopped in the middle of it"


def question(step_ids: Sequence[str], reason: str, effect: Effect = Effect.POSSIBLE) -> str:
    """What a person is asked about these steps, all for the same reason."""
    named = ", ".join(repr(step_id) for step_id in step_ids)
    what = "happened, and then failed" if effect is Effect.CERTAIN else "may have happened"
    several = len(step_ids) > 1
    return (
        f"{f'each of the steps {named}' if several else f'step {named}'} {what}: {reason.rstrip('. ')}. Look what "
        'it has done, then retry the run with uncertain_step "repeat" or "done", or cancel it. Mark steps that are '
        "safe to carry out twice as repeatable to avoid the question"
    )


def not_tried_again(error: RunError, tool: Tool) -> RunError:
    """The error of a step that only a person may have tried again."""
    why = "steps below it have" if tool.delegates else "it may have"
    message = (
        f"{error.message.rstrip('. ')}. It is not tried again by itself, because {why} changed something outside; a "
        "retry of the run does it again"
    )
    return RunError(error.code, message, False, error.step)


def fault_of(tool: Tool, error: BaseException) -> RunError:
    """The error for an exception that no tool may raise. It says whose fault that is; the exception's own message goes
    into the worker's log alone."""
    raised = f"its tool {tool.name!r} raised {type(error).__name__}; the worker's log has the details"
    if tool.package:
        return RunError(
            "plugin_failed", f"a fault of the plug-in {tool.package}, not of the platform: {raised}", retryable=True
        )
    return RunError("internal_error", f"a fault of the platform: {raised}", retryable=True)
