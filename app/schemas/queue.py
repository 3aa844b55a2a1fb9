"""What the API says of the queue, of whose a token is, and of what a user has stored."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.schemas.described import DescribedAs
from app.schemas.fields import RunId
from backplane.domain.runs import RunStatus
from backplane.domain.users import Tier


class QueueView(BaseModel):
    queue: str = Field(description="Which queue this is; scheduled and dead are those of all.", examples=["default"])
    queued: int = Field(description="Runs that wait, also those that a cap holds back.")
    running: int = Field(description="Runs that are carried out by the workers that serve this queue.")
    queued_by_priority: dict[str, int] = Field(examples=[{"critical": 0, "high": 0, "normal": 3, "low": 1}])
    held_back_by_priority: dict[str, int] = Field(
        description="Of those, the ones that wait for a run of the same user, tier or resource to end.",
        examples=[{"critical": 0, "high": 0, "normal": 0, "low": 1}],
    )
    scheduled: int = Field(description="Runs that wait for their next attempt.")
    dead: int = Field(description="Dead letters.")
    max_waiting: int = Field(description="With so many of a user's own waiting, new ones are refused; 0: no limit.")
    max_waiting_all: int = Field(
        description="The same of all users; what a user's own cap holds back is not counted. 0: no limit."
    )
    max_concurrent: int = Field(description="Runs that the live workers that serve this queue can hold at once.")
    workers: int = Field(description="Live worker processes that serve this queue.")
    estimated_wait_seconds: float | None = Field(
        description="For a run of normal priority that is started now. Null while no worker is alive."
    )
    estimated_wait_p90_seconds: float | None = Field(description="The same; nine of ten wait no longer.")


class QueueSummary(BaseModel):
    queue: str = Field(examples=["default"])
    queued: int = Field(description="Runs that wait, also those that a cap holds back.")
    running: int = Field(description="Its runs that are carried out.")
    queued_by_priority: dict[str, int] = Field(examples=[{"critical": 0, "high": 0, "normal": 3, "low": 1}])
    held_back_by_priority: dict[str, int] = Field(examples=[{"critical": 0, "high": 0, "normal": 0, "low": 1}])
    oldest_seconds: float = Field(description="How long one of its runs that may be taken has waited; 0: none waits.")
    max_concurrent: int = Field(description="Slots of the live workers that serve it, perhaps beside other queues.")
    workers: int = Field(description="Live worker processes that serve it.")


class QueueList(BaseModel):
    queues: list[QueueSummary]


class FinishedJobView(BaseModel):
    run_id: RunId
    status: RunStatus
    error: str | None = Field(description="The error's code.")
    queued_at: datetime
    claimed_at: datetime | None
    finished_at: datetime


class FinishedJobs(BaseModel):
    jobs: list[FinishedJobView]


class WhoAmI(BaseModel):
    user_id: str
    name: str
    tier: Annotated[str, DescribedAs(Tier)]


class UsageOf(BaseModel):
    used: int | None = Field(description="As counted last, with what came since; null: not counted yet.")
    limit: int = Field(description="0: no limit.")


class UsageView(BaseModel):
    runs: UsageOf
    events: UsageOf
    bytes: UsageOf = Field(description="Of files.")
    rows_counted_at: datetime | None = Field(None, description="When runs and events were counted last.")
    files_counted_at: datetime | None = Field(None, description="When the bytes of files were counted last.")
