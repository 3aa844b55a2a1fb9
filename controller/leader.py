"""Whether this controller is the one that does some work, by a lease in Redis that it renews in time."""

import time
from contextlib import suppress

from backplane.errors import Unavailable
from backplane.leases.redis import RedisLease

LOOKS_A_LEASE = 3


class Leader:
    """For work that two may do at once without harm: while Redis is away, each controller leads."""

    def __init__(self, lease: RedisLease) -> None:
        self._lease = lease
        self._due = 0.0
        self._has_lease = False
        self.is_certain = False
        """Whether Redis has said that no other controller does the work: for what must not be done twice."""

    async def leads(self) -> bool:
        now = time.monotonic()
        if now >= self._due or self._lease.is_over:
            self._due = now + self._lease.seconds / LOOKS_A_LEASE
            try:
                self.is_certain = self._has_lease = await self._lease.hold()
            except Unavailable:
                self._has_lease, self.is_certain = True, False
        return self._has_lease

    async def give_up(self) -> None:
        with suppress(Unavailable):
            await self._lease.give_up()
