"""The workspace of a run, whose user may have only so many bytes of files (USER_MAX_BYTES).

The growth of the run's files is known here without a further request: each listing says how large they were. It is
counted in Redis, and checked there, whenever it is FREE_BYTES more, so that a run with small files costs nothing. The
rest, and what is lost while Redis is away, the controller counts later.
"""

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from backplane.domain.stored import StorageQuota
from backplane.errors import NotFound, StorageExceeded, Unavailable
from backplane.limits.storage.base import Storage
from backplane.workspace.base import FileInfo, Workspace

FREE_BYTES = 1024 * 1024

log = structlog.get_logger()


class CountedWorkspace(Workspace):
    """Writing raises StorageExceeded where the user has no room left."""

    def __init__(self, inner: Workspace, storage: Storage, quota: StorageQuota, user_id: str) -> None:
        self._inner = inner
        self._storage = storage
        self._quota = quota
        self._user_id = user_id
        self._sizes: dict[str, int] = {}
        self._grown = 0
        self._flying = 0
        self._counted = 0

    async def list(self, prefix: str = "") -> list[FileInfo]:
        files = await self._inner.list(prefix)
        self._sizes.update((file.path, file.size) for file in files)
        return files

    async def stat(self, path: str) -> FileInfo:
        return await self._inner.stat(path)

    async def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        async for chunk in self._inner.read(path, start=start, end=end):
            yield chunk

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        replaced = self._sizes.get(path, 0)
        added = -replaced
        self._flying -= replaced

        async def counted() -> AsyncIterator[bytes]:
            nonlocal added
            async for chunk in chunks:
                added += len(chunk)
                self._flying += len(chunk)
                await self._check()
                yield chunk

        try:
            file = await self._inner.write(path, counted())
        finally:
            self._flying -= added
        return self._written(file)

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        return await self._inner.get(path)

    async def put(self, path: str, content: bytes) -> FileInfo:
        async with self._flies(path, len(content)):
            file = await self._inner.put(path, content)
        return self._written(file)

    async def delete(self, path: str) -> None:
        try:
            await self._inner.delete(path)
        except NotFound:
            self._sizes.pop(path, None)
            raise
        self._grown -= self._sizes.pop(path, 0)
        await self._check()

    async def download(self, path: str, target: Path) -> FileInfo:
        return await self._inner.download(path, target)

    async def upload(self, path: str, source: Path) -> FileInfo:
        size = source.stat().st_size  # noqa: ASYNC240 - of a file of this machine that was just looked at
        async with self._flies(path, size):
            file = await self._inner.upload(path, source)
        return self._written(file)

    def _written(self, file: FileInfo) -> FileInfo:
        self._grown += file.size - self._sizes.get(file.path, 0)
        self._sizes[file.path] = file.size
        return file

    @asynccontextmanager
    async def _flies(self, path: str, size: int) -> AsyncIterator[None]:
        """While the block runs, a file of so many bytes is on its way."""
        added = size - self._sizes.get(path, 0)
        self._flying += added
        try:
            await self._check()
            yield
        finally:
            self._flying -= added

    async def _check(self) -> None:
        """Count the growth so far in Redis. Raises StorageExceeded where it does not fit. A file that is not written
        after all is subtracted with a later count."""
        uncounted = self._grown + self._flying - self._counted
        if abs(uncounted) < FREE_BYTES:
            return
        self._counted += uncounted
        try:
            await self._storage.grow(self._user_id, uncounted, self._quota)
        except StorageExceeded:
            self._counted -= uncounted
            raise
        except Unavailable as error:
            log.warning("what a run writes is not counted for a moment", part=error.part, error=error.message)
