"""Whether a user may keep more: asked before a run is made or started.

The numbers are those of `backplane.limits.storage`: counted by a controller now and then. So a user may go over a limit
by what is made between two counts, which the limits on calls and on runs at once bound.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from backplane.domain.stored import StorageQuota, Stored
from backplane.errors import StorageExceeded, Unavailable
from backplane.limits.storage.base import Storage

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
        await self._check(user_id, self._quota.check_new_run)

    async def check_start(self, user_id: str) -> None:
        """Raises StorageExceeded."""
        await self._check(user_id, self._quota.check_start)

    async def _check(self, user_id: str, check: Callable[[Stored], None]) -> None:
        until, stored = self._looked_up.get(user_id, (0.0, Stored()))
        if until >= time.monotonic():
            with suppress(StorageExceeded):
                check(stored)
                return
        # A user who is refused may have deleted something since, so the numbers are looked up each time.
        check(await self._look_up(user_id, stored))

    async def _look_up(self, user_id: str, stored: Stored) -> Stored:
        with suppress(Unavailable):
            stored = await self._storage.of(user_id)
        if len(self._looked_up) >= LOOKED_UP:
            self._looked_up.clear()
        self._looked_up[user_id] = (time.monotonic() + LOOKED_UP_SECONDS, stored)
        return stored
