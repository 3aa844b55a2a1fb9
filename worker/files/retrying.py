"""A run's files: a call waits while the store is away, and changes nothing once another worker has the run.

A store of objects cannot compare fencing tokens. So before each change `ensure_ours` checks that the run is still this
worker's, which costs nothing while the lease is fresh. A request that is on its way when this process is stopped still
arrives when the process goes on.

Only calls that can be repeated wait here. Streams (`read`, `write`) cannot be replayed from the middle; a step that
uses them fails with Unavailable, and the supervisor repeats the whole step. In both cases PartRefuses is raised when
the store has refused (no right, no room) for too long.

The bytes of all files of a run are counted here, since all of them pass here.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path

from backplane.errors import Unavailable
from backplane.process.retrying import Refusals, WaitRules
from backplane.workspace.base import FileInfo, Workspace
from worker.metrics import Direction


class RetryingWorkspace(Workspace):
    """`waits`: how a store that is away is waited for. `ensure_ours` raises Superseded when another worker has the run.
    `moved` is called with the bytes of each file, or piece of one, that was downloaded or uploaded."""

    def __init__(
        self,
        inner: Workspace,
        waits: WaitRules,
        ensure_ours: Callable[[], Awaitable[None]],
        moved: Callable[[Direction, int], object],
    ) -> None:
        self._inner = inner
        self._waits = waits
        self._ensure_ours = ensure_ours
        self._moved = moved
        # A store may let read and refuse to write: what is read is no sign that it takes something.
        self._refused_reads, self._refused_writes = Refusals(waits.refused_seconds), Refusals(waits.refused_seconds)

    async def list(self, prefix: str = "") -> list[FileInfo]:
        return await self._waits.until_available(lambda: self._inner.list(prefix))

    async def stat(self, path: str) -> FileInfo:
        return await self._waits.until_available(lambda: self._inner.stat(path))

    async def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        self._refused_reads.begins()
        try:
            async for chunk in self._inner.read(path, start=start, end=end):
                self._moved("down", len(chunk))
                yield chunk
        except Unavailable as error:
            self._refused_reads.failed(error)
            raise
        self._refused_reads.succeeded()

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        await self._ensure_ours()
        self._refused_writes.begins()
        try:
            written = await self._inner.write(path, chunks)
        except Unavailable as error:
            self._refused_writes.failed(error)
            raise
        self._refused_writes.succeeded()
        self._moved("up", written.size)
        return written

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        file, content = await self._waits.until_available(lambda: self._inner.get(path))
        self._moved("down", file.size)
        return file, content

    async def put(self, path: str, content: bytes) -> FileInfo:
        async def change() -> FileInfo:
            await self._ensure_ours()
            return await self._inner.put(path, content)

        file = await self._waits.until_available(change)
        self._moved("up", file.size)
        return file

    async def delete(self, path: str) -> None:
        async def change() -> None:
            await self._ensure_ours()
            await self._inner.delete(path)

        await self._waits.until_available(change)

    async def download(self, path: str, target: Path) -> FileInfo:
        file = await self._waits.until_available(lambda: self._inner.download(path, target))
        self._moved("down", file.size)
        return file

    async def upload(self, path: str, source: Path) -> FileInfo:
        async def change() -> FileInfo:
            await self._ensure_ours()
            return await self._inner.upload(path, source)

        file = await self._waits.until_available(change)
        self._moved("up", file.size)
        return file
