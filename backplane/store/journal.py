"""The journal of a run's steps: what was meant to be done, before; what came of it, after.

The order of states tells a worker that takes a run over what it may do:

    pending    nothing was done
    started    the tool was called; nothing has reached the workspace yet
    changing   its changes were on their way into the workspace
    completed | failed | skipped
    uncertain  it may have happened, or has, and did not end well; a person decides
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from backplane.domain.plans import Plan
from backplane.store.database import Database
from backplane.store.tables import run_tools, steps


class StepStatus(StrEnum):
    PENDING = "pending"
    STARTED = "started"
    CHANGING = "changing"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNCERTAIN = "uncertain"


FINAL_FAILURE = "final"
"""In the result of a failed step: it may have changed something outside, so no further attempt of its run does it."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """`result` is {"exit_code", "output", "output_cut"?, "duration_ms", "files_changed", "files_left_out"?,
    "error"?, "effect"?, "final"?} once there is one; `effect` is what a failed step has done outside, where that is not
    nothing.
    `files`: what changed in the workspace by its end, each path with its etag, or None where it was deleted.
    `attributes`: the times, modes, folders and links that changed (`workspace.attributes.encoded`).
    `failed_tries`: those that ended, and not well."""

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
    failed_tries: int = 0
    attributes: dict[str, Any] | None = None


_RECORDED = [field.name for field in fields(StepRecord)]
_FILES = ("files", "attributes")


def to_be_done_again(plan: Mapping[str, Any] | None) -> ColumnElement[bool]:
    """Of a run with this plan, the steps that another attempt does: what failed, and what was skipped after it. That a
    step below another one failed is known to the one above, which went on from there; what only an older plan held
    stays as it is."""
    ids = [step["id"] for step in (plan or {}).get("steps", ())]
    below = steps.c.step_id.like("%/%")
    skipped, failed = (steps.c.status == status.value for status in (StepStatus.SKIPPED, StepStatus.FAILED))
    return or_(and_(or_(skipped, failed), steps.c.step_id.in_(ids)), and_(skipped, below))


def pending_steps(plan: Plan) -> list[StepRecord]:
    """The journal of a plan of which nothing was done."""
    return [
        StepRecord(step.id, position, step.title, step.tool, StepStatus.PENDING, 0, None, None, None)
        for position, step in enumerate(plan.ordered())
    ]


class Journal:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def steps(self, run_id: str, *, with_files: bool = False) -> list[StepRecord]:
        """In the order in which they are carried out; empty before there is a plan."""
        return await self._database.read(lambda connection: records_of(connection, run_id, with_files=with_files))

    async def tools(self, run_id: str) -> list[dict[str, Any]]:
        """Of MCP servers, that the run was offered when it was last taken, as {"name", "description", "parameters",
        "risk", "repeatable"}; empty where there were none, or too large ones."""
        query = select(run_tools.c.tools).where(run_tools.c.run_id == run_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar()) or []


def records_of(connection: Connection, run_id: str, *, with_files: bool = False) -> list[StepRecord]:
    """`with_files`: also `files` and `attributes`, which may take 100 MiB and more; without, they are None."""
    names = _RECORDED if with_files else [name for name in _RECORDED if name not in _FILES]
    query = select(*(steps.c[name] for name in names)).where(steps.c.run_id == run_id).order_by(steps.c.position)
    return [StepRecord(**{**row._asdict(), "status": StepStatus(row.status)}) for row in connection.execute(query)]
