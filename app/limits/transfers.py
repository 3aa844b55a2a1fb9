"""Files on their way: how many of one user at once, and room for each upload before its first byte is written.

An upload first reserves its size in Redis, then looks at what the workspace holds, and only then writes. Of several at
the same moment each learns what was reserved before, so together they never put more into a workspace, or into all that
their user has, than is allowed, whichever processes take them. One of unknown size reserves more as it comes. What a
process leaves behind that dies is free again after two minutes. While Redis is away, uploads are not reserved.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import uuid4

import structlog

from backplane.domain.stored import Reserved, StorageQuota
from backplane.errors import QuotaExceeded, StorageExceeded, TooManyTransfers, Unavailable
from backplane.limits.storage.base import Storage
from backplane.workspace.base import FileInfo, Workspace
from backplane.workspace.quota import Quota, Room, ensure_room, limited

STEP_BYTES = 8 * 1024 * 1024
"""An upload of unknown size reserves so much, and as much as has come, ahead."""
RENEW_SECONDS = 30.0
SHORTEST_PAUSE_SECONDS = 0.005

log = structlog.get_logger()


class Transfers:
    """Of one API process. `most_of_user`: files of one user that are sent and taken at once; `bytes_per_second`: of all
    of these together (0: as fast as may be), since what moves bytes has no time for the calls of others."""

    def __init__(
        self,
        storage: Storage,
        quota: Quota,
        user_quota: StorageQuota,
        *,
        most_of_user: int,
        bytes_per_second: int,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._paid_until: dict[str, float] = {}
        self._storage = storage
        self._quota = quota
        self._user_quota = user_quota
        self._most_of_user = most_of_user
        self._under_way = Counter[str]()

    @contextmanager
    def counted(self, user_id: str) -> Iterator[None]:
        """Raises TooManyTransfers."""
        if self._under_way[user_id] >= self._most_of_user:
            raise TooManyTransfers(
                f"{self._most_of_user} files of yours are on their way at this API process, and no more may be at once "
                "(TRANSFERS_USER_MAX); wait until one has arrived",
                retry_after=1,
            )
        self._under_way[user_id] += 1
        try:
            yield
        finally:
            self._under_way[user_id] -= 1
            if not self._under_way[user_id]:
                del self._under_way[user_id]
                self._paid_until.pop(user_id, None)

    async def paced(self, user_id: str, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The same chunks, of a transfer that is counted, no faster than the user's share."""
        async for chunk in chunks:
            yield chunk
            if self._bytes_per_second:
                now = time.monotonic()
                until = max(self._paid_until.get(user_id, 0.0), now) + len(chunk) / self._bytes_per_second
                self._paid_until[user_id] = until
                if until - now > SHORTEST_PAUSE_SECONDS:
                    await asyncio.sleep(until - now)

    async def upload(
        self,
        workspace: Workspace,
        user_id: str,
        run_id: str,
        path: str,
        chunks: AsyncIterable[bytes],
        size: int | None,
    ) -> FileInfo:
        """Write a file of which `size` bytes were announced. Raises InvalidPath, Conflict, QuotaExceeded,
        StorageExceeded, TooManyTransfers, Unavailable (workspace)."""
        with self.counted(user_id):
            upload = _Upload(self._storage, self._quota, self._user_quota, workspace, user_id, run_id, path)
            async with upload.reserved(size):
                file = await workspace.write(path, upload.limited(self.paced(user_id, chunks)))
                upload.grown = file.size - upload.room.replaced
                return file

    async def removed(self, user_id: str, size: int) -> None:
        """So many bytes of the user's files are gone."""
        with suppress(Unavailable):
            await self._storage.grow(user_id, -size, self._user_quota)


class _Upload:
    def __init__(
        self,
        storage: Storage,
        quota: Quota,
        user_quota: StorageQuota,
        workspace: Workspace,
        user_id: str,
        run_id: str,
        path: str,
    ) -> None:
        self.room = Room(0, 0)
        self.grown = 0
        self._storage = storage
        self._quota = quota
        self._user_quota = user_quota
        self._workspace = workspace
        self._user_id = user_id
        self._run_id = run_id
        self._path = path
        self._name = uuid4().hex
        self._size: int | None = None
        self._reserved = 0
        self._renew_at = 0.0

    @asynccontextmanager
    async def reserved(self, size: int | None) -> AsyncIterator[None]:
        self._size = size
        try:
            await self._reserve(size or 0)
            yield
        finally:
            try:
                await self._storage.release(self._user_id, self._run_id, self._name, self.grown)
            except Unavailable as error:
                log.warning("room that was reserved for an upload comes free by itself", error=error.message)

    async def limited(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        passed = 0
        async for chunk in limited(chunks, self.room.bytes):
            passed += len(chunk)
            if passed > self._reserved:
                await self._reserve_more(passed)
            elif time.monotonic() > self._renew_at:
                await self._ask(self._reserved)
            yield chunk

    async def _reserve(self, size: int) -> None:
        """Reserve, then look: what another upload has written meanwhile is in the listing or still reserved. In the
        moment when it is both, there seems to be too little room, so that is looked at twice."""
        for is_last in (False, True):
            reserved = await self._ask(size)
            try:
                self.room = await ensure_room(self._workspace, self._quota, self._path, self._size, reserved)
            except QuotaExceeded:
                if is_last:
                    raise
                continue
            if size <= self.room.bytes:
                break
        if size > self.room.bytes:
            raise QuotaExceeded(
                f"The file is larger than the {self.room.bytes} bytes left in the workspace (WORKSPACE_MAX_BYTES), "
                "where other uploads take room too: delete files first, or send a smaller one."
            )
        self._reserved = size

    async def _reserve_more(self, passed: int) -> None:
        """Ahead, where there is room; else what is needed now."""
        try:
            await self._reserve(2 * passed + STEP_BYTES)
        except (QuotaExceeded, StorageExceeded):
            await self._reserve(passed)

    async def _ask(self, size: int) -> Reserved:
        self._renew_at = time.monotonic() + RENEW_SECONDS
        try:
            return await self._storage.reserve(self._user_id, self._run_id, self._name, size, self._user_quota)
        except Unavailable as error:
            log.warning("an upload is not reserved for a moment", error=error.message)
            return Reserved()
