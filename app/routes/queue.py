"""GET /agent/queue: how long it is, who works on it and what ended last. GET /agent/queues: all of them. GET /agent/me:
whose token this is."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.queue import (
    FinishedJobs,
    FinishedJobView,
    QueueList,
    QueueSummary,
    QueueView,
    WhoAmI,
)
from backplane.domain.runs import DEFAULT_QUEUE, QUEUE_PATTERN, Priority
from backplane.domain.users import Tier
from backplane.queue.base import QueueDepths

router = Operations(tags=["queue"])

QueueName = Annotated[str, Query(pattern=QUEUE_PATTERN, description="The queue's name.")]


@router.get("/agent/queue", responses=responses(422))
async def show_queue(_: CurrentUser, context: ContextOf, queue: QueueName = DEFAULT_QUEUE) -> QueueView:
    """A queue in numbers, whoever its runs are of. One in which nothing waits and that nobody serves is empty."""
    found = await context.resources.queue.statistics(queue)
    waiting = {priority: found.queued[priority] + found.parked[priority] for priority in found.queued}
    ahead = sum(count for priority, count in found.queued.items() if priority >= Priority.NORMAL)
    wait = found.wait(ahead + 1) if found.workers else None
    return QueueView(
        queue=queue,
        queued=found.waiting,
        running=found.running,
        queued_by_priority={priority.name.lower(): count for priority, count in waiting.items()},
        held_back_by_priority={priority.name.lower(): count for priority, count in found.parked.items()},
        scheduled=found.scheduled,
        dead=found.dead,
        max_waiting=context.settings.queue_max_waiting,
        max_waiting_all=context.settings.queue_max_waiting_all,
        max_concurrent=found.slots,
        workers=found.workers,
        estimated_wait_seconds=round(wait.p50, 1) if wait else None,
        estimated_wait_p90_seconds=round(wait.p90, 1) if wait else None,
    )


@router.get("/agent/queues", responses=responses())
async def list_queues(_: CurrentUser, context: ContextOf) -> QueueList:
    """All queues in which runs wait or run, or that a live worker serves, by name."""
    return QueueList(queues=[summary_of(found) for found in await context.resources.queue.depths()])


@router.get("/agent/queue/finished", responses=responses())
async def list_finished_runs(user: CurrentUser, context: ContextOf) -> FinishedJobs:
    """The runs that ended last, newest first. One's own among the last hundred; for admins, all of them."""
    jobs = await context.resources.queue.finished()
    return FinishedJobs(
        jobs=[
            FinishedJobView(
                run_id=job.run_id,
                status=job.status,
                error=job.error or None,
                queued_at=_time(job.queued_at),
                claimed_at=_time(job.claimed_at) if job.claimed_at else None,
                finished_at=_time(job.finished_at),
            )
            for job in jobs
            if user.tier is Tier.ADMIN or job.user_id == user.id
        ]
    )


@router.get("/agent/me", responses=responses())
async def show_me(user: CurrentUser) -> WhoAmI:
    """Whose token this is."""
    return WhoAmI(user_id=user.id, name=user.name, tier=user.tier)


def summary_of(found: QueueDepths) -> QueueSummary:
    by_priority = {priority.name.lower(): depth for priority, depth in found.by_priority.items()}
    waiting = {name: depth.waiting + depth.parked for name, depth in by_priority.items()}
    return QueueSummary(
        queue=found.queue,
        queued=sum(waiting.values()),
        running=found.running,
        queued_by_priority=waiting,
        held_back_by_priority={name: depth.parked for name, depth in by_priority.items()},
        oldest_seconds=round(max(depth.oldest_seconds for depth in by_priority.values()), 1),
        max_concurrent=found.slots,
        workers=found.workers,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
