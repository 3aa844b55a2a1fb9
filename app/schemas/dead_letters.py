"""Runs that failed for good, and what their attempts failed of."""

from datetime import datetime

from pydantic import BaseModel, Field

from app.schemas.fields import NextCursor, RunId
from app.schemas.outcomes import ErrorView
from backplane.domain.dead_letters import DeadReason, Failure


class FailureView(BaseModel):
    """An attempt that failed. `error.step` names the step, whose output is among the run's steps."""

    attempt: int = Field(description="Which try it was, from 1; retrying a failed run begins at 1 again.")
    at: datetime
    error: ErrorView
    worker_id: str | None = Field(None, description="For admins.")
    traceback: str | None = Field(None, description="For admins: of a fault of the platform.")

    @classmethod
    def of(cls, failure: Failure, *, with_traceback: bool) -> "FailureView":
        return cls(
            attempt=failure.attempt,
            at=failure.at,
            error=ErrorView(**failure.error.as_dict()),
            worker_id=failure.worker_id if with_traceback else None,
            traceback=failure.traceback or None if with_traceback else None,
        )


class DeadLetterSummary(BaseModel):
    run_id: RunId
    reason: DeadReason
    at: datetime = Field(description="When it was dead-lettered.")
    attempts: int
    crashes: int = Field(description="Workers that were lost while they carried it out.")
    user_id: str
    user: str = Field(description="Name of its owner.")
    created_at: datetime
    prompt: str = Field(description="Its first 200 characters.")
    error: ErrorView | None


class DeadLetterView(DeadLetterSummary):
    failures: list[FailureView] = Field(description="What its failed attempts died of, oldest first.")


class DeadLetterPage(BaseModel):
    dead_letters: list[DeadLetterSummary]
    next_cursor: NextCursor


class Redriven(BaseModel):
    redriven: int
    left: int = Field(description="Dead letters that there still are.")


class Purged(BaseModel):
    purged: int
