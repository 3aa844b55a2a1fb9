"""How much a folder holds, measured while hostile code writes to it; and when to look again.

Every folder is opened from the one above it, which is held open, and no symbolic link is followed: so neither a rename
nor a long path hides anything, and a look costs a fixed time for each file, however deep it lies. It stops at the first
limit that is passed, so no tree costs more than its limits allow.

Looks take a share of the time, but the pause between two has an upper limit. What a command writes meanwhile shows in
the file system as a whole, which is asked on every tick, at the same cost whatever it holds: when it has grown by more
than the command has left, the next look is due at once.

Standard library only, and nothing newer than Python 3.8: the runner of a pod has it too.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_DEPTH = 256
"""Folders inside each other; a look holds so many open."""
BLOCK_BYTES = 4096
"""What a file or folder may take on the disk beyond its length, which is not counted: the limit of files bounds it."""

TICK_SECONDS = 0.05
FIRST_LOOK_SECONDS = 0.2
PAUSE_MIN_SECONDS = 0.4
PAUSE_MAX_SECONDS = 2.0
SHARE_OF_TIME = 0.05
PAUSE_AFTER_GROWTH = 1.0
"""In times of the look before."""

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Measured(NamedTuple):
    """`size`: length of all files, each name of a file on its own. `over`: what is over its limit, in words, or empty;
    the numbers are those until then."""

    size: int
    files: int
    folders: int
    over: str


class _Sums:
    def __init__(self, most_bytes: int, most_files: int) -> None:
        self._most_bytes, self._most_files = most_bytes, most_files
        self.size = self.files = self.folders = 0
        self._counted = 0

    def add_file(self, status: os.stat_result) -> None:
        self.files += 1
        self.size += status.st_size
        # It may take more of the disk than its length says: space can be reserved behind its end.
        self._counted += max(status.st_size, status.st_blocks * 512 - BLOCK_BYTES)

    def add_names(self, status: os.stat_result) -> None:
        """What a folder itself takes for the names in it, and keeps when they are removed."""
        self._counted += max(0, status.st_blocks * 512 - BLOCK_BYTES)

    def over(self) -> str:
        if self._counted > self._most_bytes:
            return f"more than {self._most_bytes:,} bytes"
        if max(self.files, self.folders) > self._most_files:
            return f"more than {self._most_files:,} files or folders"
        return ""


def measure(root: str, most_bytes: int, most_files: int, stopped: Callable[[], bool] = lambda: False) -> Measured:
    """Files and folders have the same limit, each on its own. Ends early when `stopped` says so. Whatever goes wrong on
    the way is the command changing the folder at this moment; the next look sees the result."""
    sums = _Sums(most_bytes, most_files)
    over = ""
    stack: list[tuple[int, list[str]]] = []
    try:
        with contextlib.suppress(OSError):
            opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the platform's own, may be a link
            stack.append((opened, []))
            over = _scan(opened, stack[-1][1], sums)
        while stack and not over and not stopped():
            folder, names = stack[-1]
            if not names:
                stack.pop()
                os.close(folder)
                continue
            if len(stack) > MAX_DEPTH:
                over = f"more than {MAX_DEPTH} folders inside each other"
                break
            with contextlib.suppress(OSError):
                opened = _open(names.pop(), folder)
                stack.append((opened, []))
                over = _scan(opened, stack[-1][1], sums)
    finally:
        for folder, _ in stack:
            os.close(folder)
    return Measured(sums.size, sums.files, sums.folders, over)


def _open(name: str, above: int) -> int:
    """A descriptor of a folder; takes the rights that its owner has taken from himself."""
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=above)
    except PermissionError:
        with contextlib.suppress(NotImplementedError):
            os.chmod(name, 0o700, dir_fd=above, follow_symlinks=False)
        return os.open(name, _OPEN_FOLDER, dir_fd=above)


def _scan(folder: int, names: list[str], sums: _Sums) -> str:
    sums.add_names(os.fstat(folder))
    over = sums.over()
    if over:
        return over
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    sums.folders += 1
                    names.append(entry.name)
                else:
                    sums.add_file(_status(entry, folder))
                over = sums.over()
                if over:
                    return over
    return ""


def _status(entry: os.DirEntry[str], folder: int) -> os.stat_result:
    try:
        return entry.stat(follow_symlinks=False)
    except PermissionError:  # a folder that may be listed and not entered
        os.fchmod(folder, 0o700)
        return os.stat(entry.name, dir_fd=folder, follow_symlinks=False)


def deleted_bytes(processes: Iterable[int], device: int) -> int:
    """What files on this device take that have no name any more but are open in one of these processes."""
    found: dict[int, int] = {}
    for process in processes:
        folder = f"/proc/{process}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    status = os.stat(f"{folder}/{name}")
                    if status.st_dev == device and status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
                        found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


class Space(NamedTuple):
    """Of a file system as a whole, in bytes."""

    used: int
    free: int
    whole: int


def space_of(path: str) -> Space:
    status = os.statvfs(path)
    size = status.f_frsize
    return Space((status.f_blocks - status.f_bfree) * size, status.f_bavail * size, status.f_blocks * size)


class Pace:
    """When to look again. `used`: of the file system; times in seconds, of one clock."""

    def __init__(self, now: float, used: int, most_bytes: int) -> None:
        self._due = now + FIRST_LOOK_SECONDS
        self._earliest = now
        self._used = used
        self._room = most_bytes

    def is_due(self, now: float, used: int, is_urgent: bool = False) -> bool:
        return now >= self._due or (now >= self._earliest and (is_urgent or self.has_grown(used)))

    def has_grown(self, used: int) -> bool:
        """By all that was left at the last look."""
        return used - self._used >= self._room

    def looked(self, began: float, ended: float, used: int, room: int) -> None:
        """A look has found that `room` bytes are left, while the file system had `used` before it began."""
        lasted = ended - began
        self._due = ended + min(max(PAUSE_MIN_SECONDS, lasted / SHARE_OF_TIME), PAUSE_MAX_SECONDS)
        self._earliest = ended + max(TICK_SECONDS, PAUSE_AFTER_GROWTH * lasted)
        self._used, self._room = used, room
