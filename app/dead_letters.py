"""Many dead-lettered runs back into the queue, as long as there is room.

Each is a transaction of its own: what was redriven before the queue was full, or before the API was stopped, is
redriven.
"""

from app.services import Services
from backplane.errors import NotFound, QueueFull, TransitionNotAllowed


async def redrive_oldest(services: Services, limit: int) -> int:
    """How many were redriven: at most `limit`, and no more than the queue has room for."""
    redriven = 0
    for run_id in await services.resources.store.dead_letters.oldest(limit):
        try:
            await services.submission.redrive(run_id)
        except (NotFound, TransitionNotAllowed):
            continue  # redriven, purged or past its time meanwhile
        except QueueFull:
            break
        redriven += 1
    return redriven
