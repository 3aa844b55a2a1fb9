"""A copy of a run's workspace on this machine's disk, for commands that need real files.

It is kept between the steps of a run, so each step moves only what changed: `pull` before the command, `changes` and
`push` after it. A command may leave anything behind, so what lies there is looked at without following a link, and is
believed only where its status is the one recorded (size, times and inode; ctime cannot be set back) or its content is.

A step must not see whether its files stayed here or were brought from another worker. So times, modes, empty folders
and symbolic links are kept too (`backplane.workspace.attributes`), names of one file become files of their own, and
what cannot be kept is named in `Changes.not_kept`; it is gone with the next pull. A link is kept as a text that only
commands follow. Bytecode caches of Python's are neither kept nor brought. Steps' logs (below `OUTPUT_FOLDER`) stay in
the workspace: no command waits for them or can change them, and what one leaves under that name is not kept. It must
not be used by two calls at once.
"""

import asyncio
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar

from backplane.errors import Conflict, NotFound
from backplane.process.tasks import for_each, in_thread
from backplane.workspace.attributes import (
    AttributeRecord,
    Attributes,
    is_bytecode,
    nanoseconds,
    usual_mode,
)
from backplane.workspace.base import FileInfo, Workspace
from backplane.workspace.files import (
    CREATE_FILE,
    READ_FILE,
    SerialThread,
    empty,
    make_accessible,
    move_away,
    open_folder,
    open_regular,
    split,
    translated,
)
from backplane.workspace.paths import check_path, folders_above
from backplane.workspace.quota import Quota
from worker.files.paths import OUTPUT_FOLDER
from worker.files.scan import Scan
from worker.files.tree import (
    LARGE,
    LOST_TO_ANOTHER,
    KnownFile,
    NotKept,
    Placed,
    Signature,
    Wanted,
    copied,
    digest,
    file_mode,
    make_links,
    newest_inside,
    set_attributes,
    settle_folders,
    signature,
    wanted_beside,
)

T = TypeVar("T")

LARGE_AT_ONCE = 4
"""How many files of LARGE bytes and more are in transit at once: a store may keep several parts of each in memory."""

DISTURBED = (
    "The folder of the run was changed while its files were being moved: end what still runs there, then try again."
)


@dataclass(frozen=True, slots=True)
class Changes:
    """The files that a command wrote and deleted, both sorted. `bytes` is the size of the written ones together. It is
    true when something is to be moved.

    `attributes`: the times, modes, folders and links that changed; those of written files are among them. `not_kept`:
    lines for people on what the command left and the workspace does not hold.
    """

    written: tuple[str, ...]
    deleted: tuple[str, ...]
    bytes: int
    attributes: Mapping[str, Attributes | None] = field(default_factory=dict, compare=False)
    not_kept: tuple[str, ...] = field(default=(), compare=False)

    def __bool__(self) -> bool:
        return bool(self.written or self.deleted)


class StepFiles(Protocol):
    """The files of a run as a step's command may use them."""

    @property
    def folder(self) -> Path: ...

    async def pull(self) -> None: ...

    async def changes(self) -> Changes: ...

    async def push(self, changes: Changes) -> tuple[str, ...]: ...


class Checkout:
    """`base` is this checkout's alone and is made when needed; `parallel` bounds the files in transit at once, of which
    LARGE_AT_ONCE may be large. `attributes`: the run's, where there is more than this checkout. `log_line` is called
    with a line for people on what a push does not keep."""

    def __init__(
        self,
        workspace: Workspace,
        quota: Quota,
        base: Path,
        parallel: int = 32,
        attributes: AttributeRecord | None = None,
        log_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.base = base
        self._log_line = log_line
        self._workspace = workspace
        self._attributes = attributes or AttributeRecord()
        self._quota = quota
        self._parallel = parallel
        self._known: dict[str, KnownFile] = {}
        self._wanted: dict[str, Attributes] = {}
        self._folders: dict[str, Placed] = {}
        self._links: dict[str, Placed] = {}
        self._left_there: list[FileInfo] = []
        self._disk = SerialThread()
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @property
    def folder(self) -> Path:
        """Where the files are, from the first `pull` on."""
        return self.base / "files"

    async def pull(self) -> None:
        """Make the folder equal to the workspace, whatever a command made of it; only what differs is transferred.

        Raises Unavailable, and InvalidPath or Conflict when the workspace holds what a folder cannot.
        """
        await self._attributes.load()
        wanted: dict[str, FileInfo] = {}
        self._left_there = []
        for file in await self._workspace.list():
            if file.path.split("/")[0] == OUTPUT_FOLDER or is_bytecode(file.path):
                self._left_there.append(file)
            else:
                wanted[file.path] = file
        self._wanted = self._attributes.of_files(wanted.values())
        beside = wanted_beside(wanted, self._attributes.folders, self._attributes.links)
        missing = await in_thread(self._clear, wanted, beside)
        await for_each(missing, self._fetch, parallel=self._parallel)
        await in_thread(self._settle, beside)

    async def changes(self) -> Changes:
        """What differs from the last `pull` or `push`. Nothing is moved, here or there.

        Raises InvalidPath for what a workspace cannot hold (links, devices, names, depth), QuotaExceeded for too much.
        """
        return await in_thread(self._scan)

    async def push(self, changes: Changes) -> tuple[str, ...]:
        """Bring the changes into the workspace; the changed paths of files, sorted. When it fails, a part may have
        arrived. Where only attributes changed, they are noted and nothing is moved."""
        # Files go last, so that a push cut off in the middle of a rename leaves two copies rather than none. Only what
        # stands in the way of a new file goes first: a folder's name that was a file's, or the other way round.
        lost = self._attributes.lost(changes.attributes, self._is_here)
        not_kept = NotKept()
        for path in sorted({*lost.ours, *lost.theirs}):
            not_kept.add(LOST_TO_ANOTHER, path)
        written = set(changes.written)
        above = {folder for path in written for folder in folders_above(path)}
        blocking = [path for path in changes.deleted if path in above or not written.isdisjoint(folders_above(path))]
        await for_each(blocking, self._remove, parallel=self._parallel)
        for wave in _waves(changes.written, self._known):
            await for_each(wave, lambda path: self._send(path, changes.attributes.get(path)), parallel=self._parallel)
        await for_each(set(changes.deleted).difference(blocking), self._remove, parallel=self._parallel)
        await in_thread(self._adopt, changes)
        for line in not_kept.lines():
            self._log_line(line)
        noted = {path: self._noted(path, one) for path, one in changes.attributes.items() if path not in lost.ours}
        self._attributes.change({**dict.fromkeys(lost.theirs), **noted})
        return tuple(sorted({*changes.written, *changes.deleted}))

    # --- workspace to folder ---

    def _clear(self, wanted: dict[str, FileInfo], beside: Wanted) -> list[FileInfo]:
        """Remove all that is not as wanted. Returns the files that are missing then."""
        for path in (*wanted, *beside.folders, *beside.links):
            check_path(path, max_depth=self._quota.max_depth)
        folders = beside.folders.keys()
        if both := folders & wanted.keys():
            raise Conflict(f"{min(both)!r} is a file and a folder in the workspace: delete one of the two.")

        kept = set()
        with translated("", missing=DISTURBED):
            self._make_rooms()
            with open_folder(self.base, "files") as root, open_folder(self.base, "trash") as trash:
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
                                self._give_attributes(path, name, folder, status)
                            elif stat.S_ISLNK(status.st_mode) and path in beside.links:
                                if os.readlink(name, dir_fd=folder) != beside.links[path].target:
                                    move_away(name, folder, trash)
                            else:
                                move_away(name, folder, trash)
        self._known = {path: known for path, known in self._known.items() if path in kept}
        return [file for path, file in wanted.items() if path not in kept]

    def _make_rooms(self) -> None:
        """`files`: what the command sees. `incoming`: downloads under way. `trash`: what is to be deleted."""
        self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_folder(self.base) as base:
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
            and known.signature == signature(status)
        )

    def _give_attributes(self, path: str, name: str, folder: int, status: os.stat_result) -> None:
        """Set the attributes of a file whose content is right, where another checkout has changed them."""
        known, wanted = self._known[path], self._wanted[path]
        mode = known.mode if wanted.mode is None else file_mode(wanted.mode)
        if (status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (wanted.modified, mode):
            return
        with FileIO(open_regular(name, folder)) as file:
            set_attributes(file.fileno(), mode, wanted.modified)
            self._known[path] = replace(known, signature=signature(os.fstat(file.fileno())), mode=mode)

    async def _fetch(self, file: FileInfo) -> None:
        with suppress(NotFound):  # deleted since it was listed
            if file.size < LARGE:
                arrived, content = await self._workspace.get(file.path)
                await self._disk.run(self._make, arrived, content)
                return
            async with self._large:
                incoming = self.base / "incoming" / secrets.token_hex(12)
                arrived = await self._workspace.download(file.path, incoming)
                await in_thread(self._place, arrived, incoming)

    def _make(self, file: FileInfo, content: bytes) -> None:
        """Make a small file where it belongs: its content is all here, and to make it elsewhere first takes twice as
        long."""
        above, name = split(file.path)
        with (
            translated(file.path, missing=DISTURBED),
            open_folder(self.base, f"files/{above}".rstrip("/"), create=True) as folder,
            FileIO(os.open(name, CREATE_FILE | os.O_EXCL, 0o600, dir_fd=folder), "w") as made,
        ):
            made.write(content)
            modified, mode = self._attributes_of(file, content[:4])
            set_attributes(made.fileno(), mode, modified)
            status = os.fstat(made.fileno())
        if status.st_size != len(content):
            raise Conflict(DISTURBED)
        hashed = hashlib.blake2b(content).digest()
        self._known[file.path] = KnownFile(file.etag, file.size, signature(status), hashed, mode)

    def _place(self, file: FileInfo, incoming: Path) -> None:
        above, name = split(file.path)
        with translated(file.path, missing=DISTURBED), FileIO(os.open(incoming, READ_FILE)) as content:
            hashed = file.digest or digest(content)
            modified, mode = self._attributes_of(file, os.pread(content.fileno(), 4, 0))
            set_attributes(content.fileno(), mode, modified)
            with open_folder(self.base, f"files/{above}".rstrip("/"), create=True) as folder:
                os.replace(incoming, name, dst_dir_fd=folder)
            status = os.fstat(content.fileno())
        self._known[file.path] = KnownFile(file.etag, file.size, signature(status), hashed, mode)

    def _attributes_of(self, arrived: FileInfo, content: bytes) -> tuple[int, int]:
        """Time and mode of a file; where it was changed since it was listed, as far as they are known."""
        wanted = self._wanted[arrived.path]
        modified = wanted.modified if wanted.etag == arrived.etag else nanoseconds(arrived.modified_at)
        return modified, usual_mode(content) if wanted.mode is None else file_mode(wanted.mode)

    def _settle(self, beside: Wanted) -> None:
        """Make what the files themselves do not bring: empty folders, links, and the times of folders."""
        with translated("", missing=DISTURBED):
            for room in ("trash", "incoming"):
                with open_folder(self.base, room) as folder:
                    empty(folder)
            with open_folder(self.base, "files") as root:
                self._links = dict(make_links(root, beside.links))
                self._folders = dict(settle_folders(root, beside.folders, newest_inside(self._wanted)))

    # --- folder to workspace ---

    def _scan(self) -> Changes:
        scan = Scan(self._quota, self._known, self._folders, self._links, self._left_there, self._attributes)
        with translated("", missing=DISTURBED), self._open_files() as root:
            scan.run(root)
        written, deleted = tuple(sorted(scan.written)), tuple(scan.deleted)
        return Changes(written, deleted, scan.written_bytes, scan.attributes, scan.not_kept.lines())

    @contextmanager
    def _open_files(self) -> Iterator[int]:
        # Not made here when missing: an empty folder would read as if the command had deleted every file.
        with open_folder(self.base) as base:
            make_accessible("files", base, os.lstat("files", dir_fd=base).st_mode)
            with open_folder(base, "files") as files:
                yield files

    async def _send(self, path: str, found: Attributes | None) -> None:
        with ExitStack() as opened:
            file, seen, mode, small = await self._disk.run(self._open, path, found, opened)
            if small is not None:
                sent = await self._workspace.put(path, small)
                self._known[path] = KnownFile(sent.etag, sent.size, seen, hashlib.blake2b(small).digest(), mode)
                return
            async with self._large:
                # By descriptor, so that it is this file that is sent, whatever has its name by now.
                sent, hashed = await self._send_large(path, Path(f"/dev/fd/{file.fileno()}"), file)
            if (sent.size, seen) != (seen.size, signature(os.fstat(file.fileno()))):
                raise Conflict(DISTURBED)
            self._known[path] = KnownFile(sent.etag, sent.size, seen, hashed, mode)

    async def _send_large(self, path: str, source: Path, content: FileIO) -> tuple[FileInfo, bytes]:
        """Send a large file, which is hashed on the way. Its times show whether it stays the same meanwhile."""
        hashing = asyncio.ensure_future(in_thread(digest, content))
        try:
            return await self._workspace.upload(path, source), await hashing
        finally:
            await asyncio.gather(hashing, return_exceptions=True)  # it reads from what is closed next

    def _open(
        self, path: str, found: Attributes | None, opened: ExitStack
    ) -> tuple[FileIO, Signature, int, bytes | None]:
        """Open a file. Returns it with its status and its mode, and with its content where it is small; then the file
        is closed."""
        above, name = split(path)
        with (
            translated(path, missing=DISTURBED),
            open_folder(self.base, f"files/{above}".rstrip("/")) as folder,
        ):
            file, mode = self._settled(name, folder, found)
            seen = signature(os.fstat(file.fileno()))
            if seen.size >= LARGE:
                return opened.enter_context(file), seen, mode, None
            with file:
                content = file.read()
                if seen != signature(os.fstat(file.fileno())) or len(content) != seen.size:
                    raise Conflict(DISTURBED)
            return file, seen, mode, content

    def _settled(self, name: str, folder: int, found: Attributes | None) -> tuple[FileIO, int]:
        """Give the file one name and a mode that is kept, so that the next step finds it so wherever it runs."""
        file = FileIO(open_regular(name, folder))
        status = os.fstat(file.fileno())
        if status.st_nlink > 1:
            with open_folder(self.base, "incoming") as incoming:
                file = copied(file, name, folder, incoming)
        mode = file_mode(status.st_mode) if found is None or found.mode is None else found.mode
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(file.fileno(), mode)
        return file, mode

    def _adopt(self, changes: Changes) -> None:
        """Note that what was changed beside the content of files lies here as it was noted."""
        written = set(changes.written)
        with translated("", missing=DISTURBED):
            for path, found in changes.attributes.items():
                if path.endswith("/"):
                    _adopt(self._folders, path[:-1], found)
                elif found is None or found.target is not None:
                    _adopt(self._links, path, found)
                elif path not in written:
                    above, name = split(path)
                    with open_folder(self.base, f"files/{above}".rstrip("/")) as folder:
                        file, mode = self._settled(name, folder, found)
                        with file:
                            seen = signature(os.fstat(file.fileno()))
                        self._known[path] = replace(self._known[path], signature=seen, mode=mode)

    def _is_here(self, path: str) -> bool:
        """Whether the path was here at the last `pull` or `push`; a folder's path ends with `/`."""
        return path[:-1] in self._folders if path.endswith("/") else path in self._known or path in self._links

    def _noted(self, path: str, found: Attributes | None) -> Attributes | None:
        """The attributes as they are noted; a file's with the etag that its content has in the workspace."""
        if found is None or found.target is not None or path.endswith("/"):
            return found
        return replace(found, etag=self._known[path].etag)

    async def _remove(self, path: str) -> None:
        with suppress(NotFound):
            await self._workspace.delete(path)
        self._known.pop(path, None)


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


def _adopt(placed: dict[str, Placed], path: str, found: Attributes | None) -> None:
    if found is None:
        placed.pop(path, None)
    else:
        placed[path] = Placed(found.modified, found.mode or 0, found.target or "")
