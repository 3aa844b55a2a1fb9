"""What is posted to the bus: stored first, then announced, then the runs that waited for it are woken.

Only the first of these can fail for whoever posts. What Redis did not announce is found by readers in the database; a
run that is not woken here is woken by a controller (`controller.bus`).
"""

import math
from collections.abc import Sequence

import structlog

from app.metrics import ApiMetrics, PostedBy
from backplane.bus.base import Doorbell
from backplane.domain.bus import Announcement, BusRoom, CloudEvent, Published
from backplane.errors import RateLimited, StorageExceeded, Unavailable
from backplane.limits.rates.base import RateLimiter
from backplane.run_actions.actions import RunActions
from backplane.store import EventBus

WOKEN_AT_ONCE = 20
"""Runs that a call wakes itself: whoever posts waits for it. The rest is a controller's, a second later."""

log = structlog.get_logger()


class BusPublisher:
    def __init__(
        self,
        bus: EventBus,
        doorbell: Doorbell,
        rate_limiter: RateLimiter,
        actions: RunActions,
        room: BusRoom,
        metrics: ApiMetrics,
    ) -> None:
        self._bus = bus
        self._doorbell = doorbell
        self._rate_limiter = rate_limiter
        self._actions = actions
        self._room = room
        self._metrics = metrics

    async def count(self, name: str, calls: int) -> None:
        """Count so many calls against the rate of `name`. Raises RateLimited."""
        if calls > 0 and (wait := await self._rate_limiter.take(name, calls)):
            raise RateLimited(
                "events come faster than API_RATE_PER_SECOND allows, where each event of a batch counts as a call; "
                "wait as long as Retry-After says",
                retry_after=math.ceil(wait),
            )

    async def publish(self, user_id: str, events: Sequence[CloudEvent], by: PostedBy) -> list[Published]:
        """Store all of them, or none. Raises StorageExceeded, Unavailable (database)."""
        try:
            stored = await self._bus.publish(user_id, events, self._room)
        except StorageExceeded:
            self._metrics.posted(by, "refused", len(events))
            raise
        new = sum(each.is_new for each in stored.published)
        self._metrics.posted(by, "stored", new)
        self._metrics.posted(by, "duplicate", len(events) - new)
        newest = {
            event.type: Announcement(user_id, event.type, published.cursor)
            for event, published in zip(events, stored.published, strict=True)
            if published.is_new
        }
        if newest:
            self._metrics.announced(published=await self._doorbell.ring(list(newest.values())))
        for wait in stored.matched[:WOKEN_AT_ONCE]:
            try:
                await self._actions.wake(wait)
            except Unavailable as error:
                log.warning("a run is woken later", run=wait.run_id, error=error.message)
                break
        return stored.published
