"""GET /agent/queue: how long it is, and who works on it. GET /agent/me: whose token this is."""

from fastapi import APIRouter

from app.auth import CurrentUser
from app.errors import responses
from app.models import QueueView, WhoAmI
from app.services import ServicesOf
from backplane.runs import Priority

router = APIRouter(tags=["queue"])


@router.get("/agent/queue", responses=responses())
async def show_queue(_: CurrentUser, services: ServicesOf) -> QueueView:
    """The whole platform's queue, in numbers."""
    found = await services.resources.queue.statistics()
    ahead = sum(count for priority, count in found.queued.items() if priority >= Priority.NORMAL)
    return QueueView(
        queued=sum(found.queued.values()),
        running=found.running,
        queued_by_priority={priority.name.lower(): count for priority, count in found.queued.items()},
        scheduled=found.scheduled,
        slots=found.slots,
        workers=found.workers,
        estimated_wait_seconds=round(found.wait_seconds(ahead + 1), 1),
    )


@router.get("/agent/me", responses=responses())
async def show_user(user: CurrentUser) -> WhoAmI:
    """Whose token this is."""
    return WhoAmI(user_id=user.id, name=user.name, tier=user.tier)
