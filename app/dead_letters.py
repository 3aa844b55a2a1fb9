"""Many dead-lettered runs back into the queue, as long as there is room.

Each is a transaction of its own: what was redriven before the queue was full, or before the API was stopped, is
redriven. A user who has as many waiting as one user may keeps nobody else's runs from being redriven.
"""

from app.context import ApiContext
from backplane.errors import NotFound, QueueFull, TransitionNotAllowed
from backplane.queue.base import Limit


async def redrive_oldest(context: ApiContext, limit: int) -> int:
    """How many were redriven: at most `limit`, and no more than the queue has room for."""
    store, redriven, full_users = context.resources.store, 0, set[str]()
    while True:
        found_full = False
        for run_id, user_id in await store.dead_letters.oldest(limit - redriven, without_users=full_users):
            if user_id in full_users:
                continue
            try:
                await context.submission.redrive(run_id)
            except (NotFound, TransitionNotAllowed):
                continue  # redriven, purged or past its time meanwhile
            except QueueFull as full:
                if full.limit not in (Limit.USER, Limit.SHARE):
                    return redriven
                full_users.add(user_id)
                found_full = True
                continue
            redriven += 1
        if not found_full:
            return redriven
