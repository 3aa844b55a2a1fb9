"""The port of what users have stored: how much of runs, events and files each has, and room for what is uploaded now.

The numbers are a copy. The database and the workspaces are the truth, which a controller counts now and then; between
two counts this knows what was uploaded and written since. So a number may be wrong for that long, and one that is
missing limits nobody. All methods raise Unavailable.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from backplane.domain.stored import Reserved, StorageQuota, Stored


class Storage(ABC):
    @abstractmethod
    async def of(self, user_id: str) -> Stored: ...

    @abstractmethod
    async def reserve(self, user_id: str, run_id: str, upload: str, size: int, quota: StorageQuota) -> Reserved:
        """Reserve `size` bytes for an upload, for RESERVED_SECONDS. Call it again to change the size or to have more
        time. The first to reserve gets the room. Returns what others have reserved. Raises StorageExceeded."""

    @abstractmethod
    async def release(self, user_id: str, run_id: str, upload: str, grown: int = 0) -> None:
        """End an upload, by which the user's files have grown by so many bytes."""

    @abstractmethod
    async def grow(self, user_id: str, size: int, quota: StorageQuota) -> None:
        """Count `size` more bytes of files, or fewer, down to 0. Raises StorageExceeded, and then counts nothing."""

    @abstractmethod
    async def shrink(self, user_id: str, *, runs: int, events: int) -> None:
        """Count so many runs and events less. A number that is not known yet stays unknown, and none goes below 0."""

    @abstractmethod
    async def known(self) -> dict[str, Stored]:
        """What is stored by all users of whom anything is known, for a count: `bytes` may be below 0 here, until that
        count."""

    @abstractmethod
    async def count_rows(self, counted: Mapping[str, Stored]) -> None:
        """Set the numbers of runs and events. For users who are not named they become 0."""

    @abstractmethod
    async def count_files(self, before: Mapping[str, Stored], bytes: Mapping[str, int]) -> None:
        """Set the bytes of files after a count, which one process makes at a time. `before`: what was known when it
        began; changes since then are kept."""
