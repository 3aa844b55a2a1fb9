"""A workspace that notes what is moved, and short ways to fill and read one."""

from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from backplane.workspace.base import FileInfo, Workspace
from backplane.workspace.quota import Quota
from worker.files.checkout import Changes, Checkout

QUOTA = Quota(max_bytes=1_000_000, max_files=100, max_depth=8)
NOTHING = Changes((), (), 0)


class Counting(Workspace):
    """A workspace that notes what is moved."""

    def __init__(self, inner: Workspace) -> None:
        self._inner = inner
        self.downloads: list[str] = []
        self.uploads: list[str] = []

    async def list(self, prefix: str = "") -> list[FileInfo]:
        return await self._inner.list(prefix)

    async def stat(self, path: str) -> FileInfo:
        return await self._inner.stat(path)

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._inner.read(path, start=start, end=end)

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        return await self._inner.write(path, chunks)

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        self.downloads.append(path)
        return await self._inner.get(path)

    async def put(self, path: str, content: bytes) -> FileInfo:
        self.uploads.append(path)
        return await self._inner.put(path, content)

    async def delete(self, path: str) -> None:
        await self._inner.delete(path)

    async def download(self, path: str, target: Path) -> FileInfo:
        self.downloads.append(path)
        return await self._inner.download(path, target)

    async def upload(self, path: str, source: Path) -> FileInfo:
        self.uploads.append(path)
        return await self._inner.upload(path, source)


async def put(workspace: Workspace, path: str, content: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    await workspace.write(path, chunks())


async def contents(workspace: Workspace) -> dict[str, bytes]:
    return {
        file.path: b"".join([chunk async for chunk in workspace.read(file.path)]) for file in await workspace.list()
    }


def on_disk(folder: Path) -> dict[str, bytes]:
    """Everything in the folder: plain files by their content, empty folders and the rest by what they are."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            found[str(path.relative_to(folder))] = repr(path.lstat()).encode()
    return found


async def pushed(checkout: Checkout) -> tuple[str, ...]:
    return await checkout.push(await checkout.changes())
