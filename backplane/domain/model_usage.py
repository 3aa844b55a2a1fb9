"""What models took, added up: by user, agent, model, day, role or pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

GROUPS_MAX = 100_000
"""So many groups are listed of one question; their totals are of all."""


class UsageKey(StrEnum):
    """What usage may be grouped by. The values are names of columns."""

    USER = "user"
    AGENT = "agent"
    MODEL = "model"
    DAY = "day"
    ROLE = "role"
    POOL = "pool"


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """`calls` have ended; `unpriced` of them took something whose price is not known, so it is not in `micro_usd`."""

    calls: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    micro_usd: int = 0


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """`user_id`: None is all users. `first` and `last`: days in UTC, both included."""

    user_id: str | None = None
    first: date | None = None
    last: date | None = None


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """`key`: the value of each `UsageKey` that was asked for. `user` and `day` always have one; an `agent` that lives
    is `agent-{id}`; `role` and `pool` are empty for what no agent of a pool asked."""

    key: Mapping[UsageKey, str | date]
    totals: ModelTotals


@dataclass(frozen=True, slots=True)
class UsageReport:
    """`totals`: of all groups, also those that are not listed."""

    groups: Sequence[UsageGroup]
    totals: ModelTotals
