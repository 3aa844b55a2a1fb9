"""What an overview says: one answer for a page that shows how things stand."""

from datetime import datetime

from pydantic import BaseModel, Field

from app.schemas.agents import PoolView
from app.schemas.queue import QueueSummary
from app.schemas.runs import ListedRunView


class MinuteView(BaseModel):
    minute: datetime = Field(description="When it began.")
    ended: int = Field(description="Runs that ended in it, in whatever state.")
    failed: int = Field(description="Of these, the ones that failed.")


class LatencyView(BaseModel):
    """In seconds, of the runs that ended in the last hour, of the newest 2,000 at most; null: there is none."""

    queue_p50: float | None = Field(description="From the queue to a worker; half of them took no longer.")
    queue_p95: float | None = Field(description="The same of 95 in 100.")
    run_p50: float | None = Field(description="From the worker to the end; half of them took no longer.")
    run_p95: float | None = Field(description="The same of 95 in 100.")


class NeedsYou(BaseModel):
    count: int = Field(description="What your runs ask and nobody has answered.")
    oldest_at: datetime | None = Field(description="Since when the oldest of it waits.")


class OverviewView(BaseModel):
    now: datetime
    runs: dict[str, int] = Field(
        description="How many runs there are by state; of those that are over, in the last hour.",
        examples=[{"created": 0, "queued": 2, "running": 1, "waiting": 0, "completed": 7, "failed": 1, "cancelled": 0}],
    )
    throughput: list[MinuteView] = Field(description="The last 60 minutes, the oldest first.")
    latency: LatencyView
    failed_lately: list[ListedRunView] = Field(description="The newest runs that are failed, 10 at most.")
    spend_today_usd: str = Field(description="What calls of models cost since midnight, UTC.", examples=["12.5"])
    queues: list[QueueSummary] | None = Field(description="Null while Redis does not answer.")
    workers: int | None = Field(description="Live worker processes. Null while Redis does not answer.")
    pools: list[PoolView]
    needs_you: NeedsYou
