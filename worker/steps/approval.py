"""Which steps a person approves before they are carried out: a pure decision. Nothing here asks or writes anything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.plans import Step
from backplane.domain.steps import StepRecord
from backplane.errors import InvalidPlan
from worker.steps.outcomes import unless_open
from worker.tools.base import Risk, Tool, ToolArguments
from worker.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """A person approves steps of these tools, of tools with this risk or a higher one (None: no tool), and steps that
    may cost more than so many dollars (0: no step)."""

    tools: frozenset[str] = frozenset()
    risk: Risk | None = None
    usd: float = 0.0


def why_ask(step: Step, tool: Tool, policy: ApprovalPolicy, may_cost_usd: float = 0.0) -> str | None:
    """The reason, for people, why the step needs an approval; None: it needs none."""
    if step.approval:
        return "the plan says so"
    if tool.name in policy.tools:
        return f"steps of the tool {tool.name} are approved by a person (APPROVAL_TOOLS)"
    if policy.risk is not None and tool.risk >= policy.risk:
        return f"the tool {tool.name} has {tool.risk.name.lower()} risk (APPROVAL_RISK)"
    if policy.usd and may_cost_usd > policy.usd:
        return f"it may cost {may_cost_usd:.2f} dollars, which is more than {policy.usd:.2f} (APPROVAL_USD)"
    return None


@dataclass(frozen=True, slots=True)
class Ready:
    """A step that may be carried out. `is_repeatable`: to carry it out twice does no harm."""

    tool: Tool
    arguments: ToolArguments
    is_repeatable: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A step that a person has to approve: what is asked."""

    asked: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EarlierDecisions:
    """The decisions on a step: the newest that its tool asked for, the newest approval, and the newest approval that
    expired when the run was retried."""

    by_tool: Decision | None = None
    approval: Decision | None = None
    expired: Decision | None = None


@dataclass(frozen=True, slots=True)
class ApprovalGate:
    """The approvals of one run. `policy` is None for a run that carries nothing out and so asks nobody. `redact` takes
    secrets out of arguments that people see."""

    policy: ApprovalPolicy | None
    tools: ToolRegistry
    redact: Callable[[Mapping[str, Any]], dict[str, Any]]

    def judge(
        self, step: Step, arguments: dict[str, Any], record: StepRecord, earlier: EarlierDecisions
    ) -> Ready | Question:
        """The step with the arguments that a person may have changed, or the question to ask. Raises Suspended while a
        decision is open, Rejected when a person has refused, and InvalidPlan for arguments that the tool does not
        take."""
        tool, valid = self.tools.resolve(step.tool, arguments, field=f"plan.{step.id}")
        if earlier.by_tool is not None:
            unless_open(earlier.by_tool, record)
        reason = None
        if self.policy is not None:
            reason = why_ask(step, tool, self.policy, tool.may_cost_usd(valid))
        shown, last = self.redact(arguments), earlier.approval
        if last is not None and last.asked["arguments"] == shown:
            unless_open(last, record)
            if last.status is not DecisionStatus.REJECTED:
                changed = (last.answer or {}).get("arguments")
                reason = None
                if changed is not None:
                    try:
                        tool, valid = self.tools.resolve(step.tool, changed, field="decision")
                        arguments = changed
                    except InvalidPlan as error:
                        reason = f"the arguments that were given instead do not fit ({error.message})"
        if reason is None:
            return Ready(tool, valid, step.repeatable or tool.is_repeatable(arguments))
        asked = {"tool": step.tool, "arguments": shown, "reason": reason, "round": record.failed_tries}
        asked["schema"] = tool.arguments.model_json_schema()
        if earlier.expired is not None:
            asked["reason"] = f"{reason}; the run was retried, and the approval before was for the time before"
            if (before := (earlier.expired.answer or {}).get("arguments")) is not None:
                asked["earlier_arguments"] = self.redact(before)
        return Question(asked)
