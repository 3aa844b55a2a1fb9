"""A folder of this machine and one in a pod, brought in line with each other: only what differs is sent.

The files of the pod are remembered by their status here when they were sent or fetched (size, times, inode), so a
sandbox that takes several commands gets what changed since its last. On the way back the runner sends what the command
changed. That is written without following a link, below the folder, and only as much as the limits allow: what a pod
sends is hostile.
"""

import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from backplane.domain.sizes import shortened
from backplane.errors import InvalidPath
from backplane.process.tasks import in_thread
from backplane.workspace.attributes import LATEST, PROGRAM_MODE
from backplane.workspace.files import CREATE_FILE, empty, make_accessible, open_folder, open_regular, split, translated
from backplane.workspace.paths import MAX_PATH_BYTES, check_path
from worker.files.tree import BESIDE_BYTECODE, NotKept, file_mode, folder_mode, is_folder_mode_kept, set_attributes
from worker.sandbox.base import Limits
from worker.sandbox.kubernetes.channel import NotUnderstood, parsed
from worker.sandbox.kubernetes.pod.disk import MAX_DEPTH
from worker.sandbox.kubernetes.pod.frames import (
    DATA,
    DELETE,
    DELETED,
    FILE,
    FOLDERS,
    FOLDERS_AT_ONCE,
    LINK,
    frame,
    json_frame,
)
from worker.sandbox.kubernetes.pod.machine import signature

Seen = tuple[int, int, int, int]
"""How a file looks: size, times and inode (`machine.signature`)."""

CHUNK_BYTES = 256 * 1024
DISTURBED = "The folder of the run was changed while its files were on their way into a sandbox: try again."


class TooMuch(Exception):
    """The pod sends more than the limits allow; `what` is for people."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class FileSync:
    """What one sandbox has of one folder. It must not be used by two calls at once."""

    def __init__(self) -> None:
        self._there: dict[str, Seen] = {}
        self.is_exact = True
        """False once the pod holds something that the folder cannot be made equal to."""

    async def outgoing(self, folder: Path) -> AsyncIterator[bytes]:
        """Frames that make the pod's folder equal to this one, in pieces of about CHUNK_BYTES."""
        parts = self._difference(folder)
        while piece := await in_thread(_next_piece, parts):
            yield piece

    def _difference(self, folder: Path) -> Iterator[bytes]:
        here: dict[str, os.stat_result] = {}
        folders: list[tuple[str, int, int]] = []
        with open_folder(folder) as root:
            for path, status in _tree(root):
                if stat.S_ISDIR(status.st_mode):
                    folders.append((path, folder_mode(status.st_mode), status.st_mtime_ns))
                else:
                    here[path] = status
            gone = sorted(self._there.keys() - here.keys())
            for begin in range(0, len(gone), 500):
                yield json_frame(DELETE, gone[begin : begin + 500])
            for path in gone:
                del self._there[path]
            for path, status in here.items():
                seen = signature(status)
                if self._there.get(path) == seen:
                    continue
                above, name = split(path)
                with translated(path, missing=DISTURBED), open_folder(root, above) as parent:
                    yield from _entry(path, name, parent, status)
                self._there[path] = seen
            # The runner makes its own like these, so it gets all of them, in the end.
            for begin in range(0, max(len(folders), 1), FOLDERS_AT_ONCE):
                yield json_frame(FOLDERS, {"folders": folders[begin : begin + FOLDERS_AT_ONCE]})

    def look(self, folder: Path) -> dict[str, Seen]:
        """Blocking: how all files and links in the folder look."""
        with open_folder(folder) as root:
            return {path: signature(status) for path, status in _tree(root) if not stat.S_ISDIR(status.st_mode)}

    def assume(self, there: dict[str, Seen]) -> None:
        """The pod has what the folder has: another worker sent it from the same workspace."""
        self._there = there

    def incoming(self, folder: Path, limits: Limits) -> "Incoming":
        return Incoming(folder, limits, self._there, self)


class Incoming:
    """Takes the frames of what a command changed; `finish` when they have all come, and `close` it in the end.
    `not_kept`: what the command left and no longer is where it came to."""

    def __init__(self, folder: Path, limits: Limits, there: dict[str, Seen], sync: FileSync) -> None:
        self._folder = folder
        self._limits = limits
        self._there = there
        self._sync = sync
        self._bytes = self._files = self._beside_bytecode = 0
        self._file: FileIO | None = None
        self._path = ""
        self._left = 0
        self._header: dict[str, Any] = {}
        self._folders: dict[str, tuple[int, int]] | None = None
        self.not_kept = NotKept()

    def take(self, frames: list[tuple[bytes, bytes]]) -> None:
        """Blocking. Raises TooMuch, NotUnderstood, InvalidPath, and OSError's translations."""
        with translated("", missing=DISTURBED), open_folder(self._folder) as root:
            for kind, payload in frames:
                if kind == DATA:
                    self._write(payload)
                elif kind == FILE:
                    self._begin(root, parsed(payload))
                elif kind == LINK:
                    self._link(root, parsed(payload))
                elif kind == DELETED:
                    self._delete(root, payload)
                elif kind == FOLDERS:
                    self._take_folders(parsed(payload))
                else:
                    raise NotUnderstood(f"{kind!r} among files")

    def finish(self) -> None:
        """Blocking. Make the folders equal to the pod's; a runner of an older release sends none."""
        if self._folders is None:
            return
        with translated("", missing=DISTURBED), open_folder(self._folder) as root:
            here = [path for path, status in _tree(root) if stat.S_ISDIR(status.st_mode)]
            for path in sorted(set(here) - self._folders.keys(), reverse=True):
                above, name = split(path)
                with suppress(OSError), open_folder(root, above) as parent:
                    os.rmdir(name, dir_fd=parent)  # not one in which something is
            for path in sorted(self._folders):
                with _folder_for(root, path):
                    pass
            for path, (mode, modified) in self._folders.items():
                with open_folder(root, path) as opened:
                    set_attributes(opened, mode, modified)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _begin(self, root: int, header: dict[str, Any]) -> None:
        path, size = header.get("path"), header.get("size")
        if self._file or not isinstance(path, str) or not isinstance(size, int) or size < 0:
            raise NotUnderstood("a file that cannot be")
        check_path(path, max_depth=MAX_DEPTH)
        self._files += 1
        self._bytes += size
        if self._bytes > self._limits.disk_bytes:
            raise TooMuch(f"more than {self._limits.disk_bytes:,} bytes")
        if self._files > self._limits.files:
            raise TooMuch(f"more than {self._limits.files:,} files or folders")
        above, name = split(path)
        with _folder_for(root, above) as parent:
            _clear_name(name, parent)
            self._file = FileIO(os.open(name, CREATE_FILE | os.O_EXCL, 0o700, dir_fd=parent), "w")
        self._path, self._left, self._header = path, size, header
        for kind, is_so in (("hard link", header.get("links")), ("extended attribute", header.get("extended"))):
            if is_so:
                self.not_kept.add(kind, path)
        if size == 0:
            self._write(b"")

    def _write(self, payload: bytes) -> None:
        if not self._file or len(payload) > self._left:
            raise NotUnderstood("content that belongs to no file")
        view = memoryview(payload)
        while view:
            view = view[self._file.write(view) :]
        self._left -= len(payload)
        if self._left == 0:
            modified = _number(self._header.get("time"))
            if modified is None:
                os.fchmod(self._file.fileno(), PROGRAM_MODE)
            else:
                mode = _number(self._header.get("mode")) or 0
                if file_mode(mode) != mode:
                    self.not_kept.add("mode", self._path)
                set_attributes(self._file.fileno(), file_mode(mode), modified)
            self._there[self._path] = signature(os.fstat(self._file.fileno()))
            self.close()

    def _link(self, root: int, header: dict[str, Any]) -> None:
        """As it is in the pod, so that whoever looks at the folder sees what the command left there."""
        path, target = header.get("path"), header.get("target")
        if not isinstance(path, str) or not isinstance(target, str):
            raise NotUnderstood("a link that cannot be")
        check_path(path, max_depth=MAX_DEPTH)
        self._files += 1
        if self._files > self._limits.files:
            raise TooMuch(f"more than {self._limits.files:,} files or folders")
        above, name = split(path)
        with _folder_for(root, above) as parent:
            _clear_name(name, parent)
            if header.get("what") == "link":
                with suppress(ValueError, FileNotFoundError):  # a target that is empty, or has a NUL
                    os.symlink(target, name, dir_fd=parent)
                    if (modified := _number(header.get("time"))) is not None:
                        os.utime(name, ns=(modified, modified), dir_fd=parent, follow_symlinks=False)
                    self._there[path] = signature(os.lstat(name, dir_fd=parent))
                    return
            self._sync.is_exact = False
            kind = stat.S_IFSOCK if header.get("what") == "socket" else stat.S_IFIFO
            os.mknod(name, kind | 0o600, dir_fd=parent)

    def _take_folders(self, header: dict[str, Any]) -> None:
        self._folders = {} if self._folders is None else self._folders
        listed = header.get("folders")
        for one in listed if isinstance(listed, list) else ():
            match one:
                case [str(path), int(mode), int(modified)]:
                    check_path(path, max_depth=MAX_DEPTH)
                    self._folders[path] = (folder_mode(mode), _number(modified) or 0)
                    if not is_folder_mode_kept(mode):
                        self.not_kept.add("mode", path)
                case _:
                    raise NotUnderstood("a folder that cannot be")
        beside_bytecode = header.get("beside_bytecode")
        for path in beside_bytecode if isinstance(beside_bytecode, list) else ():
            self._beside_bytecode += 1
            self.not_kept.add(BESIDE_BYTECODE, shortened(str(path), MAX_PATH_BYTES))
        if max(len(self._folders), self._beside_bytecode) > self._limits.files:
            raise TooMuch(f"more than {self._limits.files:,} files or folders")

    def _delete(self, root: int, payload: bytes) -> None:
        try:
            paths = json.loads(payload)
        except ValueError as error:
            raise NotUnderstood("a frame is no JSON") from error
        for path in paths if isinstance(paths, list) else ():
            # Only what was sent there can have been deleted there.
            if self._there.pop(str(path), None) is None:
                continue
            above, name = split(str(path))
            with suppress(FileNotFoundError, NotADirectoryError), open_folder(root, above) as parent:
                os.unlink(name, dir_fd=parent)


def _tree(root: int) -> Iterator[tuple[str, os.stat_result]]:
    """The folders, plain files and links below; a checkout that was just made equal to a workspace holds nothing
    else."""
    stack = [""]
    while stack:
        above = stack.pop()
        with open_folder(root, above) as folder, os.scandir(folder) as entries:
            for entry in entries:
                path = f"{above}/{entry.name}" if above else entry.name
                status = os.lstat(entry.name, dir_fd=folder)
                if stat.S_ISDIR(status.st_mode):
                    make_accessible(entry.name, folder, status.st_mode)
                    stack.append(path)
                elif not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                    raise InvalidPath(f"{path!r} is no plain file: only these go into a sandbox.", field="path")
                yield path, status


def _entry(path: str, name: str, parent: int, status: os.stat_result) -> Iterator[bytes]:
    """A file with its content, or a link with the text where it leads."""
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(name, dir_fd=parent)
        yield json_frame(LINK, {"path": path, "target": target, "time": status.st_mtime_ns})
        return
    header = {"path": path, "size": status.st_size, "mode": file_mode(status.st_mode), "time": status.st_mtime_ns}
    with FileIO(open_regular(name, parent)) as content:
        yield json_frame(FILE, header)
        yield from _content(content, status.st_size)


def _number(sent: Any) -> int | None:
    """A time or a mode that a pod has sent, within what is possible; None for what is no number."""
    return min(max(sent, 0), LATEST) if isinstance(sent, int) else None


def _content(file: FileIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise FileNotFoundError("the file became shorter")
        left -= len(chunk)
        yield frame(DATA, chunk)


def _next_piece(parts: Iterator[bytes]) -> bytes:
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= CHUNK_BYTES:
            break
    return bytes(piece)


def _folder_for(root: int, above: str) -> Any:
    """Open the folder, made where it is missing; what stands in its way (the command put a folder where a file or a
    link was) goes."""
    made = ""
    for name in above.split("/") if above else ():
        with open_folder(root, made) as parent, suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                os.unlink(name, dir_fd=parent)
        made = f"{made}/{name}" if made else name
        with open_folder(root, made, create=True):
            pass
    return open_folder(root, above, create=True)


def _clear_name(name: str, parent: int) -> None:
    try:
        status = os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        make_accessible(name, parent, status.st_mode)
        with open_folder(parent, name) as folder:
            empty(folder)
        os.rmdir(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)
