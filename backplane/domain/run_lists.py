"""Which runs a list shows, and what a page of it is."""

from dataclasses import dataclass
from datetime import datetime

from backplane.domain.runs import Run, RunStatus
from backplane.errors import InvalidInput

LOOKED_THROUGH = 20_000
"""Runs that one page is looked for in where a condition has no index: text, cost, agent and their like."""
COUNTED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class RunsWanted:
    """Those to which every given condition applies. `user_id` None: everybody's. `created_from` is included,
    `created_to` is not. Costs are what the calls of models cost, in millionths of a dollar. `text` stands in the
    prompt, in capitals or not."""

    user_id: str | None
    statuses: tuple[RunStatus, ...] = ()
    beginning: str | None = None
    text: str | None = None
    queue: str | None = None
    handler: str | None = None
    agent: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    cost_min: int | None = None
    cost_max: int | None = None

    def check(self) -> None:
        """Raises InvalidInput for conditions that no run can fulfil."""
        if self.created_from and self.created_to and self.created_from >= self.created_to:
            raise InvalidInput("created_to: it is not later than created_from, so that no run fits", field="created_to")
        if self.cost_min is not None and self.cost_max is not None and self.cost_min > self.cost_max:
            raise InvalidInput("cost_max: it is less than cost_min, so that no run fits", field="cost_max")


@dataclass(frozen=True, slots=True)
class ListedRun:
    """`user_name` and `micro_usd` (of calls of models) are there where they were asked for."""

    run: Run
    user_name: str
    micro_usd: int


@dataclass(frozen=True, slots=True)
class RunsFound:
    """`before` is the cursor of the next page; None: there is none. A page may have fewer runs than were asked for, or
    none, and yet another one behind it: LOOKED_THROUGH runs were looked through for it."""

    runs: list[ListedRun]
    before: str | None
