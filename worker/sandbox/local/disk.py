"""Ends a command whose folder holds too much, or that takes the last of the machine's disk.

A thread for each command that is not over soon, because looks at files may block, and so that no number of
commands uses up the threads that others need. A command's folder is measured (`worker.sandbox.kubernetes.pod.disk`);
what it has deleted and keeps open counts too, where its processes can be seen.

A look at a large tree takes a second and more. So only a few are taken at once, one for each user: a user whose
commands have many files delays the looks at that user's own folders. Looks that are due because the disk has grown, or
has little left, have places of their own.

The file system is shared with other commands and with the worker, so its growth does not show which command has caused
it. Only when its last bytes go, the command that has added most is ended, though its own limit is not reached, then the
next.

It does not see files that are deleted, closed and still mapped into memory, or that are on their way from one process
to another through a socket; the last bytes of the disk are guarded against these too, by what a process has written.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from worker.sandbox.base import Limits
from worker.sandbox.kubernetes.pod.disk import (
    FIRST_LOOK_SECONDS,
    TICK_SECONDS,
    Pace,
    Space,
    deleted_bytes,
    measure,
    space_of,
)

RESERVE_BYTES = 256 * 1024**2
RESERVE_SHARE = 0.05
"""Of a file system that is small: what must stay free is the smaller of the two."""
UNEXPLAINED_BYTES = 16 * 1024**2
"""The file system has grown by so much more than the folder: what is deleted and still open is looked for."""

START_SECONDS = FIRST_LOOK_SECONDS - TICK_SECONDS
"""Most commands are over by then, and need no thread."""

_LOOKS_AT_ONCE = 2
"""And as many urgent ones. They hold one interpreter and up to `MAX_DEPTH` descriptors each."""
_LEAST_GROWTH = 1024**2
_NEXT_VICTIM_SECONDS = 1.0


class WatchedCommand(Protocol):
    """A command, as far as it can be seen from outside; what is found in /proc. Asked from another thread."""

    def processes(self) -> list[int]:
        """The process ids, on this machine, of the command and all that it has started."""

    def crowded(self, limits: Limits) -> str:
        """A place of its own beside its folder that holds more files than it may, in words, or nothing."""


class Unseen:
    """A command whose processes are behind an engine."""

    def processes(self) -> list[int]:
        return []

    def crowded(self, limits: Limits) -> str:
        return ""


@dataclass(eq=False, slots=True)
class _WatchedFolder:
    """What the watch knows of the folder of one command."""

    path: Path
    limits: Limits
    watched: WatchedCommand
    pace: Pace
    at_start: Space
    device: int
    first_size: int = -1
    grown: int = 0
    low_looks: int = 0


class _Places:
    """For `_LOOKS_AT_ONCE` looks, and one of each user."""

    def __init__(self) -> None:
        self._all = threading.BoundedSemaphore(_LOOKS_AT_ONCE)
        self._lock = threading.Lock()
        self._of_users: WeakValueDictionary[str, threading.Semaphore] = WeakValueDictionary()

    @contextlib.contextmanager
    def place(self, user_id: str) -> Iterator[bool]:
        """Whether a place is free within a tick. A thread that waited longer would not see that its look has become
        urgent."""
        with self._lock:
            of_user = self._of_users.setdefault(user_id, threading.Semaphore())
        with _acquired(of_user) as is_first, _acquired(self._all if is_first else None) as has_place:
            yield has_place


@contextlib.contextmanager
def _acquired(semaphore: threading.Semaphore | None) -> Iterator[bool]:
    """Acquire the semaphore for the block; without a semaphore nothing is acquired."""
    if semaphore is None or not semaphore.acquire(timeout=TICK_SECONDS):
        yield False
        return
    try:
        yield True
    finally:
        semaphore.release()


class DiskWatch:
    """Watches the folders of all commands of one sandbox."""

    def __init__(self) -> None:
        self._looks, self._urgent_looks = _Places(), _Places()
        self._lock = threading.Lock()
        self._folders: list[_WatchedFolder] = []
        self._last_victim = -_NEXT_VICTIM_SECONDS

    async def full(self, user_id: str, path: Path, limits: Limits, watched: WatchedCommand) -> str:
        """Returns once the command of this user is to be ended: with the reason, in words. Raises what kept it from
        watching, for a folder that nobody watches must not be written to."""
        await asyncio.sleep(START_SECONDS)
        loop = asyncio.get_running_loop()
        found: asyncio.Future[str] = loop.create_future()
        stop = threading.Event()

        def report(reason: str, error: Exception | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(reason)
            else:
                found.set_exception(error)

        def watch() -> None:
            reason, failed = "", None
            try:
                reason = self._watch(user_id, path, limits, watched, stop)
            except Exception as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(report, reason, failed)

        threading.Thread(target=watch, name="disk-watch", daemon=True).start()
        try:
            return await found
        finally:
            stop.set()

    def _watch(self, user_id: str, path: Path, limits: Limits, watched: WatchedCommand, stop: threading.Event) -> str:
        at_start = _space(path)
        pace = Pace(time.monotonic() - START_SECONDS, at_start.used, limits.disk_bytes)
        folder = _WatchedFolder(path, limits, watched, pace, at_start, _device(path))
        with self._listed(folder):
            while not stop.wait(TICK_SECONDS):
                space = _space(path)
                is_low = space.free < min(RESERVE_BYTES, space.whole * RESERVE_SHARE)
                if not pace.is_due(time.monotonic(), space.used, is_urgent=is_low):
                    continue
                places = self._urgent_looks if is_low or pace.has_grown(space.used) else self._looks
                with places.place(user_id) as has_place:
                    if not has_place or stop.is_set():
                        continue
                    folder.low_looks = folder.low_looks + 1 if is_low else 0
                    if reason := self._look(folder, space, is_low, stop):
                        return reason
        return ""

    @contextlib.contextmanager
    def _listed(self, folder: _WatchedFolder) -> Iterator[None]:
        with self._lock:
            self._folders.append(folder)
        try:
            yield
        finally:
            with self._lock:
                self._folders.remove(folder)

    def _look(self, folder: _WatchedFolder, space: Space, is_low: bool, stop: threading.Event) -> str:
        limits = folder.limits
        began = time.monotonic()
        measured = measure(os.fspath(folder.path), limits.disk_bytes, limits.files, stop.is_set)
        if stop.is_set():
            return ""
        if measured.over:
            return f"the folder holds {measured.over}"
        if crowded := folder.watched.crowded(limits):
            return crowded
        if folder.first_size < 0:
            folder.first_size = measured.size
        used_bytes, grown = measured.size, measured.size - folder.first_size
        if is_low or space.used - folder.at_start.used > grown + UNEXPLAINED_BYTES:
            processes = folder.watched.processes()
            deleted = deleted_bytes(processes, folder.device)
            if measured.size + deleted > limits.disk_bytes:
                return f"the folder and files that are deleted but open hold more than {limits.disk_bytes:,} bytes"
            used_bytes += deleted
            folder.grown = max(grown + deleted, written_bytes(processes) if is_low else 0)
        folder.pace.looked(began, time.monotonic(), space.used, limits.disk_bytes - used_bytes)
        if is_low and self._is_next_victim(folder):
            return f"the worker's disk has only {space.free:,} bytes left, and this command has added most to it"
        return ""

    def _is_next_victim(self, folder: _WatchedFolder) -> bool:
        """Whether this command has added most. After it was ended, the next one follows only when the space of the
        first has had time to become free."""
        with self._lock:
            now = time.monotonic()
            if folder.low_looks < 2:
                return False  # the others have not been looked at yet
            if folder.grown < _LEAST_GROWTH or now - self._last_victim < _NEXT_VICTIM_SECONDS:
                return False
            if any(other.grown > folder.grown for other in self._folders):
                return False
            self._last_victim = now
            return True


def written_bytes(processes: Iterable[int]) -> int:
    """What these processes, and those of their children that have ended, have written into files so far."""
    written = 0
    for process in processes:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/io") as file:
            counts = dict(line.split(": ") for line in file.read().splitlines())
            written += int(counts["write_bytes"])
    return written


def _device(path: Path) -> int:
    try:
        return os.stat(path).st_dev
    except FileNotFoundError:  # the command has ended, and its folder is gone
        return -1


def _space(path: Path) -> Space:
    """Nothing is known of a file system that does not answer: then only the folder is measured."""
    try:
        return space_of(os.fspath(path))
    except OSError:
        return Space(0, RESERVE_BYTES, RESERVE_BYTES)
