"""The journal of a run's steps: what was meant to be done, before; what came of it, after.

The order of states tells a worker that takes a run over what it may do:

    pending    nothing was done
    started    the tool was called; nothing has reached the workspace yet
    changing   its changes were on their way into the workspace
    completed | failed | skipped
    uncertain  it was cut off where it may have happened; a person decides
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select

from backplane.plans import Plan
from backplane.store.database import Database
from backplane.store.tables import steps


class StepStatus(StrEnum):
    PENDING = "pending"
    STARTED = "started"
    CHANGING = "changing"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """`result` is {"exit_code", "output", "duration_ms", "files_changed", "error"?} once there is one. `files`: what the
    step changed in the workspace, each path with its etag, or None where it was deleted."""

    step_id: str
    position: int
    title: str
    tool: str
    status: StepStatus
    tries: int
    started_at: datetime | None
    finished_at: datetime | None
    result: dict[str, Any] | None
    files: dict[str, str | None] | None = None


def pending_steps(plan: Plan) -> list[StepRecord]:
    """The journal of a plan of which nothing was done."""
    return [
        StepRecord(step.id, position, step.title, step.tool, StepStatus.PENDING, 0, None, None, None)
        for position, step in enumerate(plan.ordered())
    ]


class Journal:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def steps(self, run_id: str) -> list[StepRecord]:
        """In the order in which they are carried out; empty before there is a plan."""
        query = select(steps).where(steps.c.run_id == run_id).order_by(steps.c.position)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            StepRecord(
                row.step_id,
                row.position,
                row.title,
                row.tool,
                StepStatus(row.status),
                row.tries,
                row.started_at,
                row.finished_at,
                row.result,
                row.files,
            )
            for row in rows
        ]
