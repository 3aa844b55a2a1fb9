"""Announces events of the bus that a part of the store has stored, after its commit.

Who carries the announcement is decided where the parts are put together (`backplane.resources`): without anybody,
readers find the events at their next look.
"""

from collections.abc import Awaitable, Callable, Sequence

from backplane.domain.bus import Announcement

RingBus = Callable[[Sequence[Announcement]], Awaitable[object]]
"""Never raises Unavailable."""


class BusBell:
    def __init__(self) -> None:
        self._ring: RingBus | None = None

    def rings(self, ring: RingBus) -> None:
        self._ring = ring

    async def ring(self, announcements: Sequence[Announcement]) -> None:
        if self._ring is not None and announcements:
            await self._ring(announcements)
