"""Which steps a person approves first."""

import pytest

from backplane.domain.plans import Step
from worker.steps.approval import ApprovalPolicy, why_ask
from worker.tools.base import Risk
from worker.tools.file_write import FileWrite
from worker.tools.shell import Shell

SHELL = Step(id="a", tool="shell")


@pytest.mark.parametrize(
    ("policy", "cost", "reason"),
    [
        (ApprovalPolicy(), 10.0, None),
        (ApprovalPolicy(tools=frozenset({"shell"})), 0.0, "APPROVAL_TOOLS"),
        (ApprovalPolicy(tools=frozenset({"python"})), 0.0, None),
        (ApprovalPolicy(risk=Risk.MEDIUM), 0.0, "APPROVAL_RISK"),
        (ApprovalPolicy(risk=Risk.HIGH), 0.0, None),
        (ApprovalPolicy(usd=1.0), 1.0, None),
        (ApprovalPolicy(usd=1.0), 1.01, "APPROVAL_USD"),
    ],
)
def test_the_policy_says_which_steps_wait(policy: ApprovalPolicy, cost: float, reason: str | None) -> None:
    why = why_ask(SHELL, Shell(), policy, cost)
    assert why is None if reason is None else why is not None and reason in why


def test_a_plan_may_ask_for_it_whatever_the_policy() -> None:
    assert why_ask(Step(id="a", tool="file_write", approval=True), FileWrite(), ApprovalPolicy()) == "the plan says so"
