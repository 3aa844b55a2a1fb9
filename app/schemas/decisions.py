"""What the API takes and gives of decisions: what runs ask people, and the answers."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.schemas.described import DescribedAs
from app.schemas.execute import GivenBudget
from app.schemas.fields import ID_PATTERN, JsonObject, NextCursor, RunId, StrictRequest, Text
from app.schemas.outcomes import Asked, GivenAnswer
from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus

DecisionId = Annotated[
    str,
    Field(
        pattern=ID_PATTERN,
        examples=["01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6d"],
        description="Id of a decision.",
    ),
]


class Approve(StrictRequest):
    """Let the step be carried out, or the run go on with a budget that is empty."""

    decision: Literal["approve"]
    arguments: JsonObject | None = Field(
        None,
        description="Carry the step out with these instead of its own.",
        examples=[{"script": "wc -l words.txt"}],
    )
    budget: GivenBudget | None = Field(
        None, description="For a budget: so much is added to the run's.", examples=[{"usd": 1.0}]
    )


class Reject(StrictRequest):
    decision: Literal["reject"]
    reason: Text = Field("", max_length=2000, description="The run gets it with the answer.")


class Answer(StrictRequest):
    """Answer a question."""

    decision: Literal["answer"]
    text: Text = Field(min_length=1, max_length=20_000)


DecideRequest = Annotated[Approve | Reject | Answer, Field(discriminator="decision")]


class DecisionView(BaseModel):
    decision_id: str
    run_id: RunId
    step: str = Field(description="The step that asks; of an agent's step, what it is about to do within.")
    kind: DecisionKind
    asked: Annotated[dict[str, Any], DescribedAs(Asked)] = Field(
        description="approval: tool, arguments, reason; question: question, choices; budget: what is empty.",
        examples=[{"tool": "shell", "arguments": {"script": "rm -r build"}, "reason": "its risk is high"}],
    )
    status: DecisionStatus
    answer: Annotated[dict[str, Any], DescribedAs(GivenAnswer)] | None
    created_at: datetime
    decided_at: datetime | None
    decided_by: str | None = Field(description="Id of a user.")
    expired_at: datetime | None = Field(
        None, description="Since when an approval no longer holds, because the run was retried and its step asks anew."
    )

    @classmethod
    def of(cls, decision: Decision) -> "DecisionView":
        return cls(
            decision_id=decision.id,
            run_id=decision.run_id,
            step=decision.step_id,
            kind=decision.kind,
            asked=decision.asked,
            status=decision.status,
            answer=decision.answer,
            created_at=decision.created_at,
            decided_at=decision.decided_at,
            decided_by=decision.decided_by,
            expired_at=decision.expired_at,
        )


class DecisionPage(BaseModel):
    decisions: list[DecisionView]
    next_cursor: NextCursor
