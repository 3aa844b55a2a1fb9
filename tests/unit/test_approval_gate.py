"""Whether a step may be carried out: what the gate makes of the policy and of earlier decisions."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.plans import Step
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import InvalidPlan
from worker.steps.approval import ApprovalGate, ApprovalPolicy, EarlierDecisions, Question, Ready
from worker.steps.outcomes import Rejected, Suspended
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.registry import ToolRegistry


class SayArguments(ToolArguments):
    text: str


class Say(Tool):
    name = "say"
    description = "Says it."
    arguments = SayArguments
    risk = Risk.HIGH

    async def run(self, arguments: Any, context: ToolContext) -> ToolResult:
        raise NotImplementedError


TOOLS = ToolRegistry((Say(),))
GATE = ApprovalGate(ApprovalPolicy(risk=Risk.HIGH), TOOLS, dict)
STEP = Step(id="a", tool="say", arguments={"text": "hello"})
RECORD = StepRecord("a", 0, "", "say", StepStatus.PENDING, 0, None, None, None)


def decided(status: DecisionStatus, answer: dict[str, Any] | None = None, **asked: Any) -> Decision:
    return Decision(
        id="d",
        run_id="r",
        user_id="u",
        step_id="a",
        kind=DecisionKind.APPROVAL,
        asked={"arguments": STEP.arguments, "round": 0, **asked},
        status=status,
        answer=answer,
        created_at=datetime.now(UTC),
    )


NONE = EarlierDecisions()


def judged(earlier: EarlierDecisions = NONE, gate: ApprovalGate = GATE) -> Ready | Question:
    return gate.judge(STEP, dict(STEP.arguments), RECORD, earlier)


def test_a_step_of_high_risk_is_asked_about_with_its_arguments_and_their_schema() -> None:
    found = judged()
    assert isinstance(found, Question)
    assert found.asked["arguments"] == {"text": "hello"}
    assert "APPROVAL_RISK" in found.asked["reason"]
    assert found.asked["schema"]["properties"].keys() == {"text"}


@pytest.mark.parametrize("policy", [None, ApprovalPolicy()])
def test_a_step_that_no_policy_names_is_ready(policy: ApprovalPolicy | None) -> None:
    assert isinstance(judged(gate=replace(GATE, policy=policy)), Ready)


def test_a_step_whose_approval_is_open_is_suspended() -> None:
    with pytest.raises(Suspended):
        judged(EarlierDecisions(approval=decided(DecisionStatus.PENDING)))


def test_a_step_that_was_approved_is_ready_with_its_arguments() -> None:
    found = judged(EarlierDecisions(approval=decided(DecisionStatus.APPROVED)))
    assert isinstance(found, Ready)
    assert found.arguments == SayArguments(text="hello")


def test_a_step_that_was_approved_with_other_arguments_has_those() -> None:
    answer = {"arguments": {"text": "bye"}}
    found = judged(EarlierDecisions(approval=decided(DecisionStatus.APPROVED, answer)))
    assert isinstance(found, Ready)
    assert found.arguments == SayArguments(text="bye")


def test_other_arguments_that_do_not_fit_are_asked_about_again() -> None:
    answer = {"arguments": {"words": "bye"}}
    found = judged(EarlierDecisions(approval=decided(DecisionStatus.APPROVED, answer)))
    assert isinstance(found, Question)
    assert "do not fit" in found.asked["reason"]


def test_an_approval_of_other_arguments_does_not_count() -> None:
    approval = decided(DecisionStatus.APPROVED, arguments={"text": "another"})
    assert isinstance(judged(EarlierDecisions(approval=approval)), Question)


def test_a_step_that_was_rejected_since_it_last_failed_is_refused() -> None:
    with pytest.raises(Rejected):
        judged(EarlierDecisions(approval=decided(DecisionStatus.REJECTED)))


def test_a_step_that_has_failed_since_it_was_rejected_is_asked_about_again() -> None:
    rejected = decided(DecisionStatus.REJECTED)
    found = GATE.judge(STEP, dict(STEP.arguments), replace(RECORD, failed_tries=1), EarlierDecisions(approval=rejected))
    assert isinstance(found, Question)
    assert found.asked["round"] == 1


def test_an_approval_that_has_expired_is_shown_with_the_arguments_that_it_gave() -> None:
    expired = decided(DecisionStatus.APPROVED, {"arguments": {"text": "bye"}})
    found = judged(EarlierDecisions(expired=expired))
    assert isinstance(found, Question)
    assert "the run was retried" in found.asked["reason"]
    assert found.asked["earlier_arguments"] == {"text": "bye"}


def test_a_question_of_the_tool_that_is_open_suspends_the_step() -> None:
    with pytest.raises(Suspended):
        judged(EarlierDecisions(by_tool=decided(DecisionStatus.PENDING)))


def test_arguments_that_the_tool_does_not_take_are_refused() -> None:
    with pytest.raises(InvalidPlan):
        GATE.judge(STEP, {"words": 1}, RECORD, EarlierDecisions())
