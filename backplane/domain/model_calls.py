"""A call of a model that a run made: how it is known, and what is kept of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from backplane.domain.runs import RunError

CALLS_A_FAILURE = 100
FAILURES_A_VERSION = 1_000
"""What a number of a call for another plan has room for: see `CallKey.number`."""


class CallKey(NamedTuple):
    """Which call of a run it is. Whoever carries the run on after a crash, or replays it, finds the same call by it.

    `step` is the id of the step that asks; empty: the run's planner. `purpose` is plan, repair, replan, turn or
    summary. `ordinal` counts from 1 among the calls that are alike in all else. `round` counts the tries that had ended
    in failure: of the step that asks, or of the one for whose failure another plan is asked for. `plan_version` is the
    version (from 1) that this other plan is to replace; None where no plan is to be replaced.

    Its two names are composed of these fields and never taken apart: people see them, and they are the primary key that
    older releases know.
    """

    step: str
    purpose: str
    ordinal: int
    round: int = 0
    plan_version: int | None = None

    @property
    def step_id(self) -> str:
        """`{step}/{round}`; empty for the planner."""
        return f"{self.step}/{self.round}" if self.step else ""

    @property
    def number(self) -> int:
        """The ordinal. Of a call for another plan one number for three fields: 1,200,203 is the third for version 13
        after two failures. `round` is below FAILURES_A_VERSION then, and `ordinal` at most CALLS_A_FAILURE."""
        if self.plan_version is None:
            return self.ordinal
        failures = (self.plan_version - 1) * FAILURES_A_VERSION + self.round
        return failures * CALLS_A_FAILURE + self.ordinal


class CallStatus(StrEnum):
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class CallTotals:
    """What a call took in all its tries. `micro_usd` is None when it is not known."""

    input_tokens: int = 0
    output_tokens: int = 0
    micro_usd: int | None = 0

    def __add__(self, other: "CallTotals") -> "CallTotals":
        known = self.micro_usd is not None and other.micro_usd is not None
        return CallTotals(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            (self.micro_usd or 0) + (other.micro_usd or 0) if known else None,
        )


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """`id` names its last try. `request` and `response` are what the worker made of them, redacted; None where they
    were not asked for. `finished_at` is None where nobody knows how the last try ended."""

    key: CallKey
    id: str
    generation: int
    status: CallStatus
    server: str
    model: str
    request_digest: str
    totals: CallTotals
    started_at: datetime
    finished_at: datetime | None
    error: RunError | None
    request: dict[str, Any] | None = None
    response: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BeginningCall:
    """What is noted of a try before it is made."""

    key: CallKey
    id: str
    server: str
    model: str
    request: Mapping[str, Any]
    request_digest: str
