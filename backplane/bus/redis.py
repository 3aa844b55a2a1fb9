"""The doorbell on Redis pub/sub: one message for each type, and one for each user.

`events:{type}` is for processes that wait for a type, whoever's it is; `agent:bus:{user_id}` for an API that serves
streams of a user. Both say "user cursor", and nothing of what is in the event.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from backplane.bus.base import Doorbell
from backplane.domain.bus import Announcement
from backplane.errors import Unavailable
from backplane.redis.client import RedisClients, translated

ANSWER_SECONDS = 1.0
"""How long an announcement may take: whoever posts an event waits for it."""
AWAY_SECONDS = 1.0
"""How long Redis is not asked again after it did not answer."""

log = structlog.get_logger()


class RedisDoorbell(Doorbell):
    def __init__(self, clients: RedisClients) -> None:
        self._redis = clients.commands
        self._keys = clients.keys
        self._away_until = 0.0

    async def ring(self, announcements: Sequence[Announcement]) -> bool:
        if not announcements:
            return True
        if time.monotonic() < self._away_until:
            return False
        newest: dict[str, int] = {}
        for each in announcements:
            newest[each.user_id] = max(newest.get(each.user_id, 0), each.cursor)
        try:
            with translated():
                async with asyncio.timeout(ANSWER_SECONDS), self._redis.pipeline(transaction=False) as pipeline:
                    for each in announcements:
                        pipeline.publish(self._keys.bus_type_channel(each.type), f"{each.user_id} {each.cursor}")
                    for user_id, cursor in newest.items():
                        pipeline.publish(self._keys.bus_user_channel(user_id), f"{user_id} {cursor}")
                    await pipeline.execute()
        except (Unavailable, TimeoutError) as error:
            reason = str(error) or "Redis does not answer"
            log.warning("events are stored and not announced; readers find them a little later", error=reason)
            self._away_until = time.monotonic() + AWAY_SECONDS
            return False
        return True
