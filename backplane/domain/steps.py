"""The journal of a run's steps: what was to be done, and what came of it.

By these states a worker that takes a run over knows what it may do:

    pending    nothing was done
    started    the tool was called; nothing has reached the workspace yet
    changing   its changes were on their way into the workspace
    completed | failed | skipped
    uncertain  it may have happened, or has, and did not end well; a person decides
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from backplane.domain.plans import Plan


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
    """`result` is {"exit_code", "output", "output_cut"?, "value"?, "duration_ms", "files_changed", "files_left_out"?,
    "error"?, "effect"?, "final"?} once there is one; `effect` is what a failed step has done outside, where that is not
    nothing.
    `files`: what changed in the workspace by its end, each path with its etag, or None where it was deleted.
    `attributes`: the times, modes, folders and links that changed (`workspace.attributes.encoded`).
    `failed_tries`: those that ended, and not well.
    `parent`: the id of the step that has this one carried out, in its try after `round` failed ones; both None of a
    step of the plan.
    `ordinal`, `request`: of an effect of a handler, which number it has in the run, from 1, and a digest of what was
    asked for; None of all others."""

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
    parent: str | None = None
    round: int | None = None
    ordinal: int | None = None
    request: str | None = None


def pending_steps(plan: Plan) -> list[StepRecord]:
    """The journal of a plan of which nothing was done."""
    return [
        StepRecord(step.id, position, step.title, step.tool, StepStatus.PENDING, 0, None, None, None)
        for position, step in enumerate(plan.ordered())
    ]
