"""A workspace that waits while its store is away, instead of failing the step that uses it.

Only calls that can be repeated wait here. Streams (`read`, `write`) cannot be replayed from the middle; a step that
uses them fails with Unavailable, and the supervisor repeats the whole of it.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from backplane.errors import Unavailable
from backplane.patience import until_available
from backplane.workspace.base import FileInfo, Workspace

Result = TypeVar("Result")


class PatientWorkspace(Workspace):
    """`tell` gets each failure and the pause after it, in seconds."""

    def __init__(self, inner: Workspace, tell: Callable[[Unavailable, float], None]) -> None:
        self._inner = inner
        self._tell = tell

    async def list(self, prefix: str = "") -> list[FileInfo]:
        return await self._patiently(lambda: self._inner.list(prefix))

    async def stat(self, path: str) -> FileInfo:
        return await self._patiently(lambda: self._inner.stat(path))

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._inner.read(path, start=start, end=end)

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        return await self._inner.write(path, chunks)

    async def delete(self, path: str) -> None:
        await self._patiently(lambda: self._inner.delete(path))

    async def download(self, path: str, target: Path) -> FileInfo:
        return await self._patiently(lambda: self._inner.download(path, target))

    async def upload(self, path: str, source: Path) -> FileInfo:
        return await self._patiently(lambda: self._inner.upload(path, source))

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        return await until_available(call, self._tell)
