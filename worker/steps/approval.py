"""Which steps a person approves before they are carried out. Says so, and does nothing."""

from dataclasses import dataclass

from backplane.domain.plans import Step
from worker.tools.base import Risk, Tool


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Steps of these tools, of tools of this risk or a higher one (None: of none), and those that may cost more than so
    many dollars (0: none)."""

    tools: frozenset[str] = frozenset()
    risk: Risk | None = None
    usd: float = 0.0


def why_ask(step: Step, tool: Tool, policy: ApprovalPolicy, may_cost_usd: float = 0.0) -> str | None:
    """The reason, for people; None: nobody has to be asked."""
    if step.approval:
        return "the plan says so"
    if tool.name in policy.tools:
        return f"steps of the tool {tool.name} are approved by a person (APPROVAL_TOOLS)"
    if policy.risk is not None and tool.risk >= policy.risk:
        return f"the tool {tool.name} has {tool.risk.name.lower()} risk (APPROVAL_RISK)"
    if policy.usd and may_cost_usd > policy.usd:
        return f"it may cost {may_cost_usd:.2f} dollars, which is more than {policy.usd:.2f} (APPROVAL_USD)"
    return None
