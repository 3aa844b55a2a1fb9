"""Whether a user may keep more: asked before a run is made or started.

The numbers are those of `backplane.storage`: counted by a controller now and then. So a user may go over a limit by
what is made between two counts, which the limits on calls and on runs at once bound.
"""

import time
from contextlib import suppress

from backplane.errors import Unavailable
from backplane.storage.base import Storage
from backplane.stored import StorageQuota, Stored

LOOKED_UP = 10_000
LOOKED_UP_SECONDS = 5.0


class StorageLimits:
    """Whether a user may keep more. What is known of a user is looked up every few seconds, not for each call."""

    def __init__(self, storage: Storage, quota: StorageQuota) -> None:
        self._storage = storage
        self._quota = quota
        self._looked_up: dict[str, tuple[float, Stored]] = {}

    async def check_new_run(self, user_id: str) -> None:
        """Raises StorageExceeded."""
        self._quota.check_new_run(await self._stored(user_id))

    async def check_start(self, user_id: str) -> None:
        """Raises StorageExceeded."""
        self._quota.check_start(await self._stored(user_id))

    async def _stored(self, user_id: str) -> Stored:
        now = time.monotonic()
        until, stored = self._looked_up.get(user_id, (0.0, Stored()))
        if until < now:
            with suppress(Unavailable):
                stored = await self._storage.of(user_id)
            if len(self._looked_up) >= LOOKED_UP:
                self._looked_up.clear()
            self._looked_up[user_id] = (now + LOOKED_UP_SECONDS, stored)
        return stored
