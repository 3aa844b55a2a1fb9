"""What the API takes and gives of bulk actions and exports."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Query
from pydantic import BaseModel, Field

from app.schemas.fields import ID_PATTERN, Moment, NextCursor, NextNumber, RunId, StrictRequest, Text
from backplane.domain.background_jobs import BackgroundJob, BulkAction, ItemStatus, JobItem, JobStatus, RunFilter
from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import RunStatus

NAMED_RUNS_MAX = 1000

EXAMPLE_BULK_ID = "01936f80-1a2b-7c3d-8e4f-5a6b7c8d9e0f"

JobId = Annotated[
    str,
    Field(
        pattern=ID_PATTERN,
        examples=[EXAMPLE_BULK_ID],
        description="Id of a bulk action or an export, as it was given.",
    ),
]

JobCursor = Annotated[JobId | None, Query(description="`next_cursor` of the page before.")]

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and request answer the same bulk action or export; another request is refused.",
    ),
]


class RunFilterRequest(StrictRequest):
    """Which runs are meant: those for which all that is given holds. Name at least one thing."""

    statuses: list[Annotated[RunStatus, Field(strict=False)]] = Field(
        [],
        max_length=len(RunStatus),
        description="Only runs in one of these states. Left out: in every state in which the action is possible.",
    )
    run_ids: list[RunId] = Field([], max_length=NAMED_RUNS_MAX, description="Only these runs.")
    agent: Text | None = Field(None, min_length=1, max_length=64, description="Only runs of this agent.")
    reason: DeadReason | None = Field(
        None, strict=False, description="For redrive: only dead letters with this reason."
    )
    created_after: Moment | None = Field(None, description="Only runs that were created then or later.")
    created_before: Moment | None = Field(None, description="Only runs that were created before.")

    def as_filter(self, action: BulkAction) -> RunFilter:
        """Raises InvalidInput."""
        given = RunFilter(
            statuses=tuple(dict.fromkeys(self.statuses)),
            run_ids=tuple(dict.fromkeys(self.run_ids)),
            agent=self.agent,
            reason=self.reason,
            created_after=self.created_after,
            created_before=self.created_before,
        )
        return given.for_action(action)


class BulkRequest(StrictRequest):
    action: BulkAction = Field(strict=False, description="What is done to each run. `redrive` is for administrators.")
    filter: RunFilterRequest
    dry_run: bool = Field(False, description="Only say how many runs are meant.")


class BulkCount(BaseModel):
    action: BulkAction
    runs: int = Field(description="How many runs are meant now. None of them was touched.", examples=[42])


class BulkView(BaseModel):
    bulk_id: JobId
    action: BulkAction
    filter: dict[str, Any] = Field(description="As it was given, with the states that are meant.")
    status: JobStatus
    total: int = Field(description="Runs that are meant: those of the moment when it was asked for.")
    done: int = Field(description="Runs to which the action was done.")
    refused: int = Field(description="Runs that refused it, each with the reason.")
    error: str | None = Field(None, description="Why it failed as a whole.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @classmethod
    def of(cls, job: BackgroundJob) -> "BulkView":
        return cls(
            bulk_id=job.id,
            action=BulkAction(job.action),
            filter=job.request,
            status=job.status,
            total=job.total,
            done=job.done,
            refused=job.refused,
            error=job.error,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
        )


class BulkPage(BaseModel):
    bulk_actions: list[BulkView]
    next_cursor: NextCursor


class BulkRunView(BaseModel):
    run_id: RunId
    status: ItemStatus = Field(description="`begun`: it is being done.")
    detail: str | None = Field(None, description="Why it was refused, or the run that a replay has made.")

    @classmethod
    def of(cls, item: JobItem) -> "BulkRunView":
        return cls(run_id=item.run_id, status=item.status, detail=item.detail)


class BulkRunPage(BaseModel):
    runs: list[BulkRunView]
    next_cursor: NextNumber


class ExportView(BaseModel):
    export_id: JobId
    run_id: RunId
    status: JobStatus
    files: int = Field(description="Files of the workspace that are in the archive by now.")
    files_total: int = Field(description="0 before they were counted.")
    bytes: int | None = Field(None, description="Size of the archive, once it is there.")
    archive: str | None = Field(
        None,
        description="Where to fetch it, with the same token, until `expires_at`; null before it is there and after.",
        examples=[f"/agent/exports/{EXAMPLE_BULK_ID}/archive"],
    )
    expires_at: datetime | None = Field(None, description="When the archive is removed.")
    error: str | None = Field(None, description="Why there is none.")
    created_at: datetime
    finished_at: datetime | None = None

    @classmethod
    def of(cls, job: BackgroundJob) -> "ExportView":
        made = job.result if job.status is JobStatus.COMPLETED else None
        return cls(
            export_id=job.id,
            run_id=job.request["run_id"],
            status=job.status,
            files=job.done,
            files_total=job.total,
            bytes=made["bytes"] if made is not None else None,
            archive=f"/agent/exports/{job.id}/archive" if job.has_archive else None,
            expires_at=job.expires_at if job.status is JobStatus.COMPLETED else None,
            error=job.error,
            created_at=job.created_at,
            finished_at=job.finished_at,
        )


class ExportPage(BaseModel):
    exports: list[ExportView]
    next_cursor: NextCursor
