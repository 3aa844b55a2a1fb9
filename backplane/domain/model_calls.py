"""A call of a model that a run made: how it is known, and what is kept of it.

A call is known by the step it was made for, its purpose, and its number within them, so that whoever carries the run on
after a crash, or replays it, finds the same call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from backplane.domain.runs import RunError


class CallKey(NamedTuple):
    """`step_id` is empty for the run's planner. `number` counts from 1."""

    step_id: str
    purpose: str
    number: int


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
