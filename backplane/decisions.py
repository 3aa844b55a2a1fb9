"""What a run asks a person, and what the person said.

A run that has nothing else to do while it waits for the answer is `waiting` and holds no worker. The question is a row,
committed with the state; so is the answer, which queues the run again. Both outlive every process.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class DecisionKind(StrEnum):
    APPROVAL = "approval"  # may this step be carried out? asked: {"tool", "arguments", "reason"}
    QUESTION = "question"  # the step wants words; asked: {"question", "choices"?}
    BUDGET = "budget"  # a budget is empty; asked: {"resource", "account", "needed", "left"}


class DecisionStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"  # answer: {} or {"arguments"}: carried out with those instead
    REJECTED = "rejected"  # answer: {"reason"}
    ANSWERED = "answered"  # answer: {"text"}


@dataclass(frozen=True, slots=True)
class Decision:
    """`asked` and `answer` are JSON objects as their kind and status have them. `decided_by`: a user's id."""

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
