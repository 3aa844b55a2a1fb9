"""Workspaces in a folder of this machine: what `agentctl up` uses, and every process on one machine can share.

A file is written to `.incoming/` beside the tree and renamed into place, so a reader sees the old content or the new.
Nothing is fsynced: after a power cut the newest files may be missing. Symbolic links are never followed, and the tree
holds none. Folders come with their first file and go with their last.
"""

import asyncio
import builtins
import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from backplane.errors import NotFound, Unavailable
from backplane.process.tasks import in_thread
from backplane.workspace.base import (
    BEGINNING,
    PROBE,
    Beginning,
    FileInfo,
    Versions,
    Workspace,
    WorkspaceStore,
    WorkspaceUsage,
    run_prefix,
    version_name,
    versions_prefix,
)
from backplane.workspace.files import (
    CREATE_FILE,
    READ_FILE,
    REFUSALS,
    SerialThread,
    empty,
    incoming_file,
    open_folder,
    open_regular,
    split,
    translated,
    write_all,
)
from backplane.workspace.identity import is_copy_of, note_identity

CHUNK = 256 * 1024
STALE_SECONDS = 24 * 3600
COUNTED_AT_ONCE = 2_000
"""Files that one turn in a thread counts, at least; a whole walk in one would keep a process from ending."""


class LocalWorkspaceStore(WorkspaceStore):
    """Files lie in `root/users/{user_id}/runs/{run_id}/`; files have mode 0600, folders 0700."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def workspace(self, user_id: str, run_id: str) -> Workspace:
        return LocalWorkspace(self._root, run_prefix(user_id, run_id).rstrip("/"))

    def versions(self, user_id: str, run_id: str) -> Versions:
        return LocalVersions(self._root, user_id, run_id)

    async def remove(self, user_id: str, run_id: str) -> None:
        for prefix in (run_prefix(user_id, run_id), versions_prefix(user_id, run_id)):
            await in_thread(self._remove, prefix.rstrip("/"))

    async def usage_by_user(self) -> dict[str, WorkspaceUsage]:
        await self.check()
        usage: dict[str, WorkspaceUsage] = {}
        for user_id in await in_thread(self._users):
            files = size = 0
            folders = [f"users/{user_id}"]
            while folders:
                found = await in_thread(self._count, folders)
                files, size = files + found.files, size + found.bytes
            usage[user_id] = WorkspaceUsage(files, size)
        return usage

    async def prepare(self) -> None:
        await in_thread(self._prepare)

    async def check(self) -> None:
        await in_thread(self._check)

    async def close(self) -> None:
        """Nothing is held open."""

    def _prepare(self) -> None:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open_folder(self._root, ".incoming", create=True) as incoming:
                newest = datetime.now(UTC).timestamp() - STALE_SECONDS
                for name in os.listdir(incoming):
                    with contextlib.suppress(FileNotFoundError):
                        if os.lstat(name, dir_fd=incoming).st_mtime < newest:
                            os.unlink(name, dir_fd=incoming)
                self._try_out(incoming)
            note_identity(self._root)
        except OSError as error:
            raise self._unavailable(error) from error

    def _remove(self, path: str) -> None:
        """Emptied where it is, so that a crash in the middle leaves nothing where nobody looks."""
        parent, name = split(path)
        while True:
            try:
                with open_folder(self._root, parent) as runs:
                    with open_folder(runs, name) as folder:
                        empty(folder)
                    os.rmdir(name, dir_fd=runs)
            except FileNotFoundError:
                # Somebody removes it at the same time, or it is gone.
                if not os.path.lexists(self._root / path):
                    return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise self._unavailable(error) from error
            else:
                return

    def _users(self) -> list[str]:
        try:
            with open_folder(self._root, "users") as folder, os.scandir(folder) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unavailable(error) from error

    def _count(self, folders: list[str]) -> WorkspaceUsage:
        """Of the last of these folders; those that lie in them are added to the list."""
        files = size = 0
        try:
            while folders and files < COUNTED_AT_ONCE:
                above = folders.pop()
                # A folder may go while this looks.
                with (
                    contextlib.suppress(FileNotFoundError, NotADirectoryError),
                    open_folder(self._root, above) as folder,
                    os.scandir(folder) as entries,
                ):
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{above}/{entry.name}")
                        elif entry.is_file(follow_symlinks=False):
                            with contextlib.suppress(FileNotFoundError):
                                size += entry.stat(follow_symlinks=False).st_size
                                files += 1
        except OSError as error:
            raise self._unavailable(error) from error
        return WorkspaceUsage(files, size)

    def _check(self) -> None:
        try:
            with open_folder(self._root, ".incoming", create=True) as incoming:
                self._try_out(incoming)
        except OSError as error:
            raise self._unavailable(error) from error

    def _try_out(self, incoming: int) -> None:
        name = f"probe-{secrets.token_hex(8)}"
        try:
            with FileIO(os.open(name, CREATE_FILE, 0o600, dir_fd=incoming), "w") as file:
                write_all(file, PROBE)
            with FileIO(os.open(name, READ_FILE, dir_fd=incoming)) as file:
                file.read()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=incoming)

    def _unavailable(self, error: OSError) -> Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what_to_do = "Free space there, or add some"
        else:
            what_to_do = "Point WORKSPACE_DIR at a folder that this process may write"
        return Unavailable(
            f"The workspace folder {self._root} cannot be used: {error.strerror}. {what_to_do}.",
            part="workspace",
            refuses=error.errno in REFUSALS,
        )


class LocalWorkspace(Workspace):
    def __init__(self, root: Path, folder: str) -> None:
        self._root = root
        self._folder = folder
        # Copying in several threads at once takes twice as long: they wait for one interpreter.
        self._copying = asyncio.Lock()
        self._disk = SerialThread()

    async def list(self, prefix: str = "") -> list[FileInfo]:
        return await in_thread(self._list, prefix)

    async def stat(self, path: str) -> FileInfo:
        return await in_thread(self._stat, path)

    async def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        with contextlib.ExitStack() as opened:
            file = await in_thread(self._open, path, opened)
            file.seek(start)
            left = None if end is None else max(end - start, 0)
            while chunk := await in_thread(_read, path, file, CHUNK if left is None else min(CHUNK, left)):
                if left is not None:
                    left -= len(chunk)
                yield chunk

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        with contextlib.ExitStack() as opened:
            file, incoming = await in_thread(self._create, path, opened)
            async for chunk in chunks:
                await in_thread(_append, path, file, chunk)
            return await in_thread(self._place, path, file, incoming)

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        return await self._disk.run(self._get, path)

    async def put(self, path: str, content: bytes) -> FileInfo:
        return await self._disk.run(self._put, path, content)

    async def delete(self, path: str) -> None:
        await in_thread(self._delete, path)

    async def download(self, path: str, target: Path) -> FileInfo:
        async with self._copying:
            return await in_thread(self._download, path, target)

    async def upload(self, path: str, source: Path) -> FileInfo:
        async with self._copying:
            return await in_thread(self._upload, path, source)

    def _list(self, prefix: str) -> builtins.list[FileInfo]:
        top = f"{self._folder}/"
        found: builtins.list[FileInfo] = []
        if prefix:
            with contextlib.suppress(NotFound):
                found.append(self._stat(prefix))
        folders = [top + prefix if prefix else self._folder]
        while folders:
            folder = folders.pop()
            with (
                translated(folder.removeprefix(top)),
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                open_folder(self._root, folder) as opened,
            ):
                for name in os.listdir(opened):
                    path = f"{folder}/{name}"
                    with contextlib.suppress(FileNotFoundError):
                        status = os.lstat(name, dir_fd=opened)
                        if stat.S_ISDIR(status.st_mode):
                            folders.append(path)
                        elif stat.S_ISREG(status.st_mode):
                            found.append(_info(path.removeprefix(top), status))
        return sorted(found, key=lambda file: file.path)

    def _stat(self, path: str) -> FileInfo:
        with translated(path), self._within(path) as (folder, name):
            status = os.lstat(name, dir_fd=folder)
            if not stat.S_ISREG(status.st_mode):
                raise IsADirectoryError(path)
            return _info(path, status)

    def _open(self, path: str, opened: contextlib.ExitStack) -> FileIO:
        with translated(path), self._within(path) as (folder, name):
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                raise IsADirectoryError(path)
            return opened.enter_context(FileIO(open_regular(name, folder)))

    def _create(self, path: str, opened: contextlib.ExitStack) -> tuple[FileIO, Path]:
        incoming = incoming_file(self._root, opened)
        with translated(path):
            return opened.enter_context(FileIO(os.open(incoming, CREATE_FILE, 0o600), "w")), incoming

    def _place(self, path: str, file: FileIO, incoming: Path) -> FileInfo:
        info = _info(path, os.fstat(file.fileno()))
        _place(self._root, f"{self._folder}/", path, incoming)
        return info

    def _delete(self, path: str) -> None:
        folder, name = split(path)
        with translated(path), contextlib.ExitStack() as opened:
            parents: list[tuple[int, str]] = []
            current = opened.enter_context(open_folder(self._root, self._folder))
            for inner in folder.split("/") if folder else ():
                parents.append((current, inner))
                current = opened.enter_context(open_folder(current, inner))
            os.unlink(name, dir_fd=current)
            with contextlib.suppress(OSError):  # the first folder that is not empty ends it
                for parent, inner in reversed(parents):
                    os.rmdir(inner, dir_fd=parent)

    def _download(self, path: str, target: Path) -> FileInfo:
        with contextlib.ExitStack() as opened:
            source = self._open(path, opened)
            with translated(path), FileIO(os.open(target, CREATE_FILE, 0o600), "w") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
                return _info(path, os.fstat(source.fileno()))

    def _get(self, path: str) -> tuple[FileInfo, bytes]:
        with contextlib.ExitStack() as opened:
            file = self._open(path, opened)
            with translated(path):
                return _info(path, os.fstat(file.fileno())), file.read()

    def _put(self, path: str, content: bytes) -> FileInfo:
        with contextlib.ExitStack() as opened:
            file, incoming = self._create(path, opened)
            _append(path, file, content)
            return self._place(path, file, incoming)

    def _upload(self, path: str, source: Path) -> FileInfo:
        with source.open("rb") as content, contextlib.ExitStack() as opened:
            file, incoming = self._create(path, opened)
            with translated(path):
                shutil.copyfileobj(content, file, CHUNK)
            return self._place(path, file, incoming)

    @contextlib.contextmanager
    def _within(self, path: str) -> Iterator[tuple[int, str]]:
        folder, name = split(f"{self._folder}/{path}")
        with open_folder(self._root, folder) as opened:
            yield opened, name


class LocalVersions(Versions):
    """Files are replaced, never changed, so a version is one more name of the same file (a hard link); where the disk
    has none, a copy."""

    def __init__(self, root: Path, user_id: str, run_id: str) -> None:
        self._root = root
        self._user_id = user_id
        self._run_id = run_id
        self._folder = versions_prefix(user_id, run_id).rstrip("/")
        self._present = run_prefix(user_id, run_id)

    async def keep(self, path: str, etag: str) -> None:
        await in_thread(self._keep, path, etag)

    async def bring_back(self, path: str, etag: str, run_id: str) -> bool:
        return await in_thread(self._bring_back, path, etag, run_prefix(self._user_id, run_id))

    async def size(self) -> int:
        return await in_thread(self._size)

    async def beginning(self) -> Beginning | None:
        try:
            return Beginning.decoded((await self._notes().get(BEGINNING))[1])
        except NotFound:
            return None

    async def begin(self, beginning: Beginning) -> None:
        await self._notes().put(BEGINNING, beginning.encoded())

    def _notes(self) -> LocalWorkspace:
        return LocalWorkspace(self._root, self._folder)

    def _keep(self, path: str, etag: str) -> None:
        with contextlib.ExitStack() as opened:
            incoming = self._another_name(path, self._present + path, etag, opened)
            with translated(path), open_folder(self._root, self._folder, create=True) as versions:
                os.replace(incoming, version_name(path, etag), dst_dir_fd=versions)

    def _bring_back(self, path: str, etag: str, prefix: str) -> bool:
        with contextlib.ExitStack() as opened:
            try:
                kept = f"{self._folder}/{version_name(path, etag)}"
                try:
                    incoming = self._another_name(path, kept, None, opened)
                except NotFound:
                    incoming = self._another_name(path, self._present + path, etag, opened)
                    if _info(path, os.lstat(incoming)).etag != etag:
                        self._keep_as(path, etag, incoming)
            except NotFound:
                return False
            _place(self._root, prefix, path, incoming)
            return True

    def _keep_as(self, path: str, etag: str, source: Path) -> None:
        """Of a copied folder: whatever becomes of the present file, this etag leads to what it was. Where the disk has
        no links, only until then."""
        with contextlib.suppress(OSError), open_folder(self._root, self._folder, create=True) as versions:
            os.link(source, version_name(path, etag), dst_dir_fd=versions, follow_symlinks=False)

    def _another_name(self, path: str, source: str, etag: str | None, opened: contextlib.ExitStack) -> Path:
        """One in `.incoming/`, removed in the end. Raises NotFound when the source has another etag, if one is
        given."""
        incoming = incoming_file(self._root, opened)
        folder, name = split(source)
        with translated(path), open_folder(self._root, folder) as parent:
            if not stat.S_ISREG(os.lstat(name, dir_fd=parent).st_mode):
                raise IsADirectoryError(path)
            try:
                os.link(name, incoming, src_dir_fd=parent, follow_symlinks=False)
                status = os.lstat(incoming)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV):
                    raise
                with (
                    FileIO(open_regular(name, parent)) as original,
                    FileIO(os.open(incoming, CREATE_FILE, 0o600), "w") as copy,
                ):
                    shutil.copyfileobj(original, copy, CHUNK)
                    status = os.fstat(original.fileno())
        if etag is not None and _info(path, status).etag != etag and not is_copy_of(status, etag, self._root):
            raise NotFound(f"The file {path!a} has changed.")
        return incoming

    def _size(self) -> int:
        size = 0
        with (
            translated(self._folder),
            contextlib.suppress(FileNotFoundError),
            open_folder(self._root, self._folder) as folder,
            os.scandir(folder) as entries,
        ):
            for entry in entries:
                if entry.name != BEGINNING:
                    size += entry.stat(follow_symlinks=False).st_size
        return size


def _place(root: Path, prefix: str, path: str, incoming: Path) -> None:
    folder, name = split(prefix + path)
    with translated(path, missing=f"{path!r} cannot be written: it is a folder, or a folder in it is a file."):
        while True:
            with open_folder(root, folder, create=True) as opened:
                try:
                    os.replace(incoming, name, dst_dir_fd=opened)
                except FileNotFoundError:
                    # A delete at the same moment took the folder away while it was still empty.
                    if os.fstat(opened).st_nlink:
                        raise
                    continue
                return


def _read(path: str, file: FileIO, count: int) -> bytes:
    with translated(path):
        return file.read(count) or b""


def _append(path: str, file: FileIO, chunk: bytes) -> None:
    with translated(path):
        write_all(file, chunk)


def _info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(
        path=path,
        size=status.st_size,
        modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
        etag=f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}",
    )
