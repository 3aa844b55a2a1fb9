"""The files of a pod's folder: as the worker sends them, and what the command made of them.

What is there is remembered by how it looked when it came or was sent (size, times, inode), so only what differs goes
either way. Each step is to find its files alike wherever it is carried out: with their times and modes, with the
folders and links that the workspace has, without bytecode caches, and with one name each.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from worker.sandbox.kubernetes.pod.frames import (
    CHUNK,
    DATA,
    DELETE,
    DELETED,
    DONE,
    FILE,
    FOLDERS,
    FOLDERS_AT_ONCE,
    LINK,
    frame,
    json_frame,
)
from worker.sandbox.kubernetes.pod.machine import (
    clear,
    has_extended_attributes,
    keep_folders,
    put_copy,
    set_attributes,
    signature,
    walk,
    write_all,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    Signature = tuple[int, int, int, int]

PATH_MAX = 4096
KINDS = (FILE, DATA, LINK, FOLDERS, DELETE)
"""Frames of the worker's for `Files.receive`."""


class Files:
    def __init__(self, workspace: str) -> None:
        self._workspace = workspace
        self._known: dict[str, Signature] = {}
        self._collected: dict[str, Signature] = {}
        self._incoming: tuple[dict[str, Any], BinaryIO, int] | None = None
        self._folders: list[tuple[str, int, int]] | None = None

    def begin(self, *, clear_first: bool) -> None:
        """A command is to come, and what it lacks of its files before it."""
        if clear_first:
            self._collected = {}
            self._known = {}
            clear(self._workspace)
        self._known = self._collected or self._known
        self._collected = {}
        self._incoming = None
        self._folders = None

    def receive(self, kind: bytes, payload: bytes) -> None:
        if kind == FILE:
            self._expect(json.loads(payload))
        elif kind == DATA:
            self._take(payload)
        elif kind == LINK:
            self._make_link(json.loads(payload))
        elif kind == FOLDERS:
            self._folders = (self._folders or []) + [tuple(header) for header in json.loads(payload)["folders"]]
        elif kind == DELETE:
            for path in json.loads(payload):
                self._known.pop(path, None)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(path))

    def settle_folders(self) -> None:
        """Make the folders equal to the worker's, with their times; a worker of an older release sends no folders."""
        if self._folders is None:
            return
        keep_folders(self._workspace, {path for path, _, _ in self._folders})
        for path, _, _ in self._folders:
            os.makedirs(self._path(path), exist_ok=True)
        for path, mode, modified in self._folders:
            set_attributes(self._path(path), mode, modified)

    def _path(self, path: str) -> str:
        return os.path.join(self._workspace, path)

    def _expect(self, header: dict[str, Any]) -> None:
        target = self._room_for(header["path"])
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
        self._incoming = (header, os.fdopen(descriptor, "wb", buffering=0), header["size"])
        if header["size"] == 0:
            self._take(b"")

    def _room_for(self, path: str) -> str:
        target = self._path(path)
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(target).st_mode):
                clear(target)
                os.rmdir(target)
            else:
                os.unlink(target)
        return target

    def _make_link(self, header: dict[str, Any]) -> None:
        target = self._room_for(header["path"])
        os.symlink(header["target"], target)
        os.utime(target, ns=(header["time"], header["time"]), follow_symlinks=False)
        self._known[header["path"]] = signature(os.lstat(target))

    def _take(self, payload: bytes) -> None:
        assert self._incoming
        header, file, left = self._incoming
        write_all(file, payload)
        left -= len(payload)
        if left > 0:
            self._incoming = (header, file, left)
            return
        if "time" in header:
            os.fchmod(file.fileno(), header["mode"])
            os.utime(file.fileno(), ns=(header["time"], header["time"]))
        self._known[header["path"]] = signature(os.fstat(file.fileno()))
        file.close()
        self._incoming = None

    def collect(self, with_attributes: bool) -> Iterator[bytes]:
        """What the command changed since the files came: what is gone, then what is new or different, then, where the
        worker wants them, all folders, and what lies in bytecode caches and is none."""
        files: dict[str, Signature] = {}
        changed: list[tuple[str, os.stat_result]] = []
        folders: list[tuple[str, int, int]] = []
        beside_bytecode: list[str] = []
        for path, status in walk(self._workspace, with_folders=True, beside_bytecode=beside_bytecode):
            if stat.S_ISDIR(status.st_mode):
                folders.append((path, stat.S_IMODE(status.st_mode), status.st_mtime_ns))
                continue
            files[path] = signature(status)
            if self._known.get(path) != files[path]:
                changed.append((path, status))
        gone = sorted(set(self._known) - set(files))
        for begin in range(0, len(gone), 500):
            yield json_frame(DELETED, gone[begin : begin + 500])
        for path, status in changed:
            if not stat.S_ISREG(status.st_mode):
                yield self._about_other(path, status)
        for path, status in changed:
            if not stat.S_ISREG(status.st_mode):
                continue
            if not self._can_open(path):
                yield json_frame(FILE, {"path": path, "size": status.st_size})
                return  # the worker refuses it, and wants no more
            yield from self._send_file(path, status)
            files[path] = signature(os.lstat(self._path(path)))
        self._collected = files
        if with_attributes:
            for begin in range(0, max(len(folders), 1), FOLDERS_AT_ONCE):
                yield json_frame(FOLDERS, {"folders": folders[begin : begin + FOLDERS_AT_ONCE]})
            for begin in range(0, len(beside_bytecode), FOLDERS_AT_ONCE):
                named = {"folders": [], "beside_bytecode": beside_bytecode[begin : begin + FOLDERS_AT_ONCE]}
                yield json_frame(FOLDERS, named)
        yield frame(DONE)

    def _about_other(self, path: str, status: os.stat_result) -> bytes:
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(self._path(path)) if self._can_open(path) else ""
            return json_frame(LINK, {"path": path, "what": "link", "target": target, "time": status.st_mtime_ns})
        what = "socket" if stat.S_ISSOCK(status.st_mode) else "pipe"
        return json_frame(LINK, {"path": path, "what": what, "target": ""})

    def _can_open(self, path: str) -> bool:
        return len(os.fsencode(self._path(path))) < PATH_MAX

    def _send_file(self, path: str, status: os.stat_result) -> Iterator[bytes]:
        target, size = self._path(path), status.st_size
        if not os.access(target, os.R_OK):
            with contextlib.suppress(OSError):
                os.chmod(target, 0o600)
        header = {"path": path, "size": size, "mode": stat.S_IMODE(status.st_mode), "time": status.st_mtime_ns}
        header["links"] = status.st_nlink > 1
        header["extended"] = has_extended_attributes(target)
        with open(target, "rb", buffering=0) as file:
            yield json_frame(FILE, header)
            left = size
            while left > 0:
                chunk = file.read(min(left, 4 * CHUNK)) or b"\0" * min(left, CHUNK)
                left -= len(chunk)
                yield frame(DATA, chunk)
        # As the worker has it, for the command after this one.
        if status.st_nlink > 1:
            put_copy(target)
        if os.lstat(target).st_mode != status.st_mode or status.st_mode & 0o7400 != 0o400:
            set_attributes(target, stat.S_IMODE(status.st_mode) & 0o777 | 0o400, status.st_mtime_ns)
