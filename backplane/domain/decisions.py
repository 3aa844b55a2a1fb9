"""What a run asks a person, and what the person answered.

A run that has nothing else to do while it waits for the answer is `waiting` and holds no worker. The question is a row,
committed with the state; so is the answer, which queues the run again. Both outlive every process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from backplane.domain.events import Event
from backplane.domain.runs import Run
from backplane.errors import Conflict, InvalidInput


class DecisionKind(StrEnum):
    APPROVAL = "approval"  # may this step be carried out? asked: {"tool", "arguments", "reason", "schema"}
    QUESTION = "question"  # the step wants words; asked: {"question", "choices"?}
    BUDGET = "budget"  # a budget is empty; asked: {"resource", "account", "needed", "left"}


class DecisionStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"  # answer: {}, {"arguments"}: carried out with those instead, or {"budget"}: so much was added
    REJECTED = "rejected"  # answer: {"reason"}
    ANSWERED = "answered"  # answer: {"text"}


@dataclass(frozen=True, slots=True)
class Decision:
    """`asked` and `answer` are JSON objects as their kind and status have them. `decided_by`: a user's id.
    `expired_at`: since when an approval no longer counts, because the step was begun with it and a person retried the
    run. `parent`: the step above the one that asks; None where there is none."""

    id: str
    run_id: str
    user_id: str
    step_id: str
    kind: DecisionKind
    asked: dict[str, Any]
    status: DecisionStatus
    created_at: datetime
    answer: dict[str, Any] | None = None
    decided_at: datetime | None = None
    decided_by: str | None = None
    expired_at: datetime | None = None
    parent: str | None = None


_FITS = {
    DecisionKind.APPROVAL: (DecisionStatus.APPROVED, DecisionStatus.REJECTED),
    DecisionKind.QUESTION: (DecisionStatus.ANSWERED, DecisionStatus.REJECTED),
    DecisionKind.BUDGET: (DecisionStatus.APPROVED, DecisionStatus.REJECTED),
}
_HOW = {DecisionStatus.APPROVED: "approve", DecisionStatus.REJECTED: "reject", DecisionStatus.ANSWERED: "answer"}


def check_answer(decision: Decision, status: DecisionStatus, answer: Mapping[str, Any]) -> None:
    """Raises Conflict when the decision takes no such answer, and InvalidInput when a part of it does not fit."""
    fits = _FITS[decision.kind]
    if status not in fits:
        possible = " or ".join(_HOW[one] for one in fits)
        raise Conflict(f"decision {decision.id} is of the kind {decision.kind}: {possible} it")
    if "arguments" in answer and decision.kind is not DecisionKind.APPROVAL:
        raise InvalidInput("arguments: only the approval of a step can change its arguments", field="arguments")
    if "budget" in answer and decision.kind is not DecisionKind.BUDGET:
        raise InvalidInput("budget: only a decision of the kind budget takes amounts to add", field="budget")
    choices = decision.asked.get("choices")
    if status is DecisionStatus.ANSWERED and choices and answer.get("text") not in choices:
        raise InvalidInput(f"text: answer with one of: {', '.join(map(str, choices))}", field="text")


@dataclass(frozen=True, slots=True)
class Decided:
    """`events`: the run's new events; there are none when the same answer was given before. `goes_on`: the run waited,
    and is queued now."""

    decision: Decision
    run: Run
    events: list[Event]
    goes_on: bool = False


class DecisionMade(Exception):
    """The decision that a run is about to wait for has been made meanwhile: the run goes on instead."""
