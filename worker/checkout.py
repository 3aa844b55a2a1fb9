"""A copy of a run's workspace on this machine's disk, for commands that need real files.

It is kept between the steps of a run, so each step moves only what changed: `pull` before the command, `changes` and
`push` after it. A command may leave anything behind, so what lies there is looked at without following a link, and is
believed only where its status is the one recorded (size, times and inode; ctime cannot be set back) or its content is.

What S3 cannot hold is not kept: empty folders go with the next pull, and modes are not stored. Files pulled are
executable, so that a script runs also after another worker has taken the run over. Steps' logs (below `OUTPUT_FOLDER`)
stay in the workspace: no command waits for them or can change them, and what one leaves under that name is not kept.
Not safe for two calls at once.
"""

import asyncio
import hashlib
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar

from backplane.errors import Conflict, InvalidPath, NotFound
from backplane.workspace.base import FileInfo, Workspace
from backplane.workspace.files import (
    CREATE_FILE,
    READ_FILE,
    SerialThread,
    empty,
    in_thread,
    make_accessible,
    move_away,
    open_folder,
    open_regular,
    split,
    translated,
)
from backplane.workspace.paths import check_path, folders_above
from backplane.workspace.quota import Quota, check_totals
from worker.step_output import OUTPUT_FOLDER

T = TypeVar("T")

LARGE = 1024 * 1024
"""From this many bytes on a file is large: it is hashed in a thread of its own, and few are in transit at once."""

LARGE_AT_ONCE = 4
"""A store may hold several parts of each in memory."""

READ_AT_ONCE = 16 * 1024
"""Bytes of a file that are read and hashed without a buffer."""

DISTURBED = (
    "The folder of the run was changed while its files were being moved: end what still runs there, then try again."
)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a command did to the files, both sorted. `bytes` is the size of the written ones together."""

    written: tuple[str, ...]
    deleted: tuple[str, ...]
    bytes: int

    def __bool__(self) -> bool:
        return bool(self.written or self.deleted)


@dataclass(frozen=True, slots=True)
class _Signature:
    size: int
    modified: int
    changed: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Known:
    """A file that lies here as it lies in the workspace: how it looks there, and here."""

    etag: str
    size: int
    signature: _Signature
    digest: bytes


class StepFiles(Protocol):
    """The files of a run as a step's command may use them."""

    @property
    def folder(self) -> Path: ...

    async def pull(self) -> None: ...

    async def changes(self) -> Changes: ...

    async def push(self, changes: Changes) -> tuple[str, ...]: ...


class Checkout:
    """`base` is this checkout's alone and is made when needed; `parallel` bounds the files in transit at once, of which
    LARGE_AT_ONCE may be large."""

    def __init__(self, workspace: Workspace, quota: Quota, base: Path, parallel: int = 32) -> None:
        self._workspace = workspace
        self._quota = quota
        self._base = base
        self._parallel = parallel
        self._known: dict[str, _Known] = {}
        self._left_there: list[FileInfo] = []
        self._disk = SerialThread()
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @property
    def folder(self) -> Path:
        """Where the files are, from the first `pull` on."""
        return self._base / "files"

    async def pull(self) -> None:
        """Make the folder equal to the workspace, whatever a command made of it; only what differs is transferred.

        Raises Unavailable, and InvalidPath or Conflict when the workspace holds what a folder cannot.
        """
        wanted: dict[str, FileInfo] = {}
        self._left_there = []
        for file in await self._workspace.list():
            if file.path.split("/")[0] == OUTPUT_FOLDER:
                self._left_there.append(file)
            else:
                wanted[file.path] = file
        missing = await in_thread(self._clear, wanted)
        await self._each(missing, self._fetch)
        await in_thread(self._empty_trash)

    async def changes(self) -> Changes:
        """What differs from the last `pull` or `push`. Nothing is moved, here or there.

        Raises InvalidPath for what a workspace cannot hold (links, devices, names, depth), QuotaExceeded for too much.
        """
        return await in_thread(self._scan)

    async def push(self, changes: Changes) -> tuple[str, ...]:
        """Bring the changes into the workspace; the changed paths, sorted. When it fails, a part may have arrived."""
        # Files go last, so that a push cut off in the middle of a rename leaves two copies rather than none. Only what
        # stands in the way of a new file goes first: a folder's name that was a file's, or the other way round.
        written = set(changes.written)
        above = {folder for path in written for folder in folders_above(path)}
        blocking = [path for path in changes.deleted if path in above or not written.isdisjoint(folders_above(path))]
        await self._each(blocking, self._remove)
        for wave in _waves(changes.written, self._known):
            await self._each(wave, self._send)
        await self._each(set(changes.deleted).difference(blocking), self._remove)
        return tuple(sorted({*changes.written, *changes.deleted}))

    async def discard(self) -> None:
        """Delete the folder, whatever a command left in it, and forget it. A later `pull` starts anew."""
        await in_thread(self._discard)

    async def _each(self, items: Iterable[T], action: Callable[[T], Awaitable[None]]) -> None:
        """`parallel` at once; the first error ends the others and is raised."""
        left = iter(items)

        async def work() -> None:
            for item in left:
                await action(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._parallel):
                    group.create_task(work())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    # --- workspace to folder ---

    def _clear(self, wanted: dict[str, FileInfo]) -> list[FileInfo]:
        """Remove all that is not as wanted; what is then missing."""
        for path in wanted:
            check_path(path, max_depth=self._quota.max_depth)
        folders = {folder for path in wanted for folder in folders_above(path)}
        if both := folders & wanted.keys():
            raise Conflict(f"{min(both)!r} is a file and a folder in the workspace: delete one of the two.")

        kept = set()
        with translated("", missing=DISTURBED):
            self._make_rooms()
            with open_folder(self._base, "files") as root, open_folder(self._base, "trash") as trash:
                stack = [""]
                while stack:
                    above = stack.pop()
                    with open_folder(root, above) as folder:
                        for name in os.listdir(folder):
                            path = f"{above}/{name}" if above else name
                            status = os.lstat(name, dir_fd=folder)
                            if stat.S_ISDIR(status.st_mode) and path in folders:
                                make_accessible(name, folder, status.st_mode)
                                stack.append(path)
                            elif path in wanted and self._is_current(wanted[path], status):
                                kept.add(path)
                            else:
                                move_away(name, folder, trash)
        self._known = {path: known for path, known in self._known.items() if path in kept}
        return [file for path, file in wanted.items() if path not in kept]

    def _make_rooms(self) -> None:
        """`files`: what the command sees. `incoming`: downloads under way. `trash`: what is to be deleted."""
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_folder(self._base) as base:
            for name in ("trash", "incoming", "files"):
                with suppress(FileNotFoundError):
                    status = os.lstat(name, dir_fd=base)
                    if not stat.S_ISDIR(status.st_mode):
                        os.unlink(name, dir_fd=base)
                    else:
                        make_accessible(name, base, status.st_mode)
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=base)

    def _is_current(self, wanted: FileInfo, status: os.stat_result) -> bool:
        known = self._known.get(wanted.path)
        return (
            known is not None
            and stat.S_ISREG(status.st_mode)
            and (known.etag, known.size) == (wanted.etag, wanted.size)
            and known.signature == _signature(status)
        )

    async def _fetch(self, file: FileInfo) -> None:
        with suppress(NotFound):  # deleted since it was listed
            if file.size < LARGE:
                arrived, content = await self._workspace.get(file.path)
                await self._disk.run(self._make, arrived, content)
                return
            async with self._large:
                incoming = self._base / "incoming" / secrets.token_hex(12)
                arrived = await self._workspace.download(file.path, incoming)
                await in_thread(self._place, arrived, incoming)

    def _make(self, file: FileInfo, content: bytes) -> None:
        """A small file is made where it belongs: it is all here, and making it elsewhere first takes twice as long."""
        above, name = split(file.path)
        with (
            translated(file.path, missing=DISTURBED),
            open_folder(self._base, f"files/{above}".rstrip("/"), create=True) as folder,
            FileIO(os.open(name, CREATE_FILE | os.O_EXCL, 0o700, dir_fd=folder), "w") as made,
        ):
            made.write(content)
            status = os.fstat(made.fileno())
        if status.st_size != len(content):
            raise Conflict(DISTURBED)
        self._known[file.path] = _Known(file.etag, file.size, _signature(status), hashlib.blake2b(content).digest())

    def _place(self, file: FileInfo, incoming: Path) -> None:
        above, name = split(file.path)
        with translated(file.path, missing=DISTURBED), FileIO(os.open(incoming, READ_FILE)) as content:
            digest = file.digest or _digest(content)
            os.fchmod(content.fileno(), 0o700)
            with open_folder(self._base, f"files/{above}".rstrip("/"), create=True) as folder:
                os.replace(incoming, name, dst_dir_fd=folder)
            status = os.fstat(content.fileno())
        self._known[file.path] = _Known(file.etag, file.size, _signature(status), digest)

    def _empty_trash(self) -> None:
        with translated("", missing=DISTURBED):
            for room in ("trash", "incoming"):
                with open_folder(self._base, room) as folder:
                    empty(folder)

    # --- folder to workspace ---

    def _scan(self) -> Changes:
        files, size = len(self._left_there), sum(file.size for file in self._left_there)
        folders = written_size = 0
        found: set[str] = set()
        written: list[str] = []
        with translated("", missing=DISTURBED), self._open_files() as root:
            stack = [""]
            while stack:
                above = stack.pop()
                with open_folder(root, above) as folder, os.scandir(folder) as entries:
                    for entry in entries:
                        if not above and entry.name == OUTPUT_FOLDER:
                            continue
                        path = f"{above}/{entry.name}" if above else entry.name
                        check_path(path, max_depth=self._quota.max_depth)
                        status = os.lstat(entry.name, dir_fd=folder)
                        if stat.S_ISDIR(status.st_mode):
                            make_accessible(entry.name, folder, status.st_mode)
                            folders += 1
                            stack.append(path)
                        elif stat.S_ISREG(status.st_mode):
                            files += 1
                            size += status.st_size
                            found.add(path)
                            if not self._is_unchanged(path, entry.name, folder, status):
                                written.append(path)
                                written_size += status.st_size
                        else:
                            raise InvalidPath(
                                f"{path!r} is a {_kind(status.st_mode)}; a workspace holds plain files only: "
                                "delete it, or put a copy of its content in its place.",
                                field="path",
                            )
                        # Folders are not kept, but 100,001 empty ones must not cost more than as many files.
                        check_totals(self._quota, files=max(files, folders), size=size)
        return Changes(tuple(sorted(written)), tuple(sorted(self._known.keys() - found)), written_size)

    @contextmanager
    def _open_files(self) -> Iterator[int]:
        # Not made here when missing: an empty folder would read as if the command had deleted every file.
        with open_folder(self._base) as base:
            make_accessible("files", base, os.lstat("files", dir_fd=base).st_mode)
            with open_folder(base, "files") as files:
                yield files

    def _is_unchanged(self, path: str, name: str, folder: int, status: os.stat_result) -> bool:
        known = self._known.get(path)
        if known is None:
            return False
        if known.signature == _signature(status):
            return True
        if known.size != status.st_size:
            return False
        with FileIO(open_regular(name, folder)) as content:
            now = os.fstat(content.fileno())
            if _digest(content) != known.digest:
                return False
        self._known[path] = _Known(known.etag, known.size, _signature(now), known.digest)
        return True

    async def _send(self, path: str) -> None:
        with ExitStack() as opened:
            file, signature, small = await self._disk.run(self._open, path, opened)
            if small is not None:
                sent = await self._workspace.put(path, small)
                self._known[path] = _Known(sent.etag, sent.size, signature, hashlib.blake2b(small).digest())
                return
            async with self._large:
                # By descriptor, so that it is this file that is sent, whatever has its name by now.
                sent, digest = await self._send_large(path, Path(f"/dev/fd/{file.fileno()}"), file)
            if (sent.size, signature) != (signature.size, _signature(os.fstat(file.fileno()))):
                raise Conflict(DISTURBED)
            self._known[path] = _Known(sent.etag, sent.size, signature, digest)

    async def _send_large(self, path: str, source: Path, content: FileIO) -> tuple[FileInfo, bytes]:
        """Hashed while it is sent: that the file stays the same meanwhile is seen from its times."""
        hashing = asyncio.ensure_future(in_thread(_digest, content))
        try:
            return await self._workspace.upload(path, source), await hashing
        finally:
            await asyncio.gather(hashing, return_exceptions=True)  # it reads from what is closed next

    def _open(self, path: str, opened: ExitStack) -> tuple[FileIO, _Signature, bytes | None]:
        """The file, how it looks, and its content where it is small; then it is closed."""
        above, name = split(path)
        with (
            translated(path, missing=DISTURBED),
            open_folder(self._base, f"files/{above}".rstrip("/")) as folder,
        ):
            file = FileIO(open_regular(name, folder))
            signature = _signature(os.fstat(file.fileno()))
            if signature.size >= LARGE:
                return opened.enter_context(file), signature, None
            with file:
                content = file.read()
                if signature != _signature(os.fstat(file.fileno())) or len(content) != signature.size:
                    raise Conflict(DISTURBED)
            return file, signature, content

    async def _remove(self, path: str) -> None:
        with suppress(NotFound):
            await self._workspace.delete(path)
        self._known.pop(path, None)

    def _discard(self) -> None:
        self._known.clear()
        if not os.path.lexists(self._base):
            return
        with translated("", missing=DISTURBED):
            self._make_rooms()
            with open_folder(self._base) as base:
                empty(base)
            self._base.rmdir()


def _waves(paths: Iterable[str], present: Iterable[str]) -> Iterator[list[str]]:
    """The paths in lists to be sent one after the other, so that no two files arrive at once in a folder that is new.

    S3 has no folders, but servers that keep files on a disk make them, and rclone loses a file when two make the same.
    One wave for each level of folders costs next to nothing; all but the first file of each folder are in the last.
    """
    made = {folder for path in present for folder in ("", *folders_above(path))}
    left = {path: ["", *folders_above(path)] for path in paths}
    for level in range(max(map(len, left.values()), default=0)):
        first: dict[str, str] = {}
        for path, folders in left.items():
            if level < len(folders) and folders[level] not in made:
                first.setdefault(folders[level], path)
        for path in first.values():
            made.update(left.pop(path))
        yield list(first.values())
    yield list(left)


def _signature(status: os.stat_result) -> _Signature:
    return _Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _digest(content: FileIO) -> bytes:
    # `hashlib.file_digest` clears a buffer of 256 KiB for each file.
    start = content.read(READ_AT_ONCE)
    digest = hashlib.blake2b(start)
    if len(start) == READ_AT_ONCE:
        chunk = bytearray(LARGE)
        while count := content.readinto(chunk):
            digest.update(memoryview(chunk)[:count])
    return digest.digest()


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"
