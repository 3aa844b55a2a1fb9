"""The doorbell of the event bus: announces that users have new events, to whoever listens at this moment.

It carries no event. What was announced while nobody listened, or while Redis was away, is found in the database by
whoever goes on behind its cursor.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from backplane.domain.bus import Announcement


class Doorbell(ABC):
    @abstractmethod
    async def ring(self, announcements: Sequence[Announcement]) -> bool:
        """Announce these. Returns whether they were announced. It does not raise when Redis does not answer, and does
        not wait for it longer than a second: the events are stored."""
