"""The folder in which a worker keeps its checkouts. It belongs to one process, and is removed when that ends.

A worker that is killed leaves its folder behind. Each holds a lock on its folder, which the system releases with the
process, so the next worker that starts on the machine finds the abandoned ones and removes them.

To delete what a command has left may take minutes. So no run's slot, no start and no end of a worker waits for it for
long: one thread deletes folder after folder, and the process does not wait for that thread.
"""

import asyncio
import fcntl
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from backplane.domain.sandbox_labels import SCRATCH_PREFIX
from backplane.process.abandoned import end_sandboxes_of
from backplane.workspace.files import empty, make_accessible, open_folder

log = structlog.get_logger()

PATIENCE_SECONDS = 5.0
"""How long a worker deletes folders at its start and end. The rest is deleted while it works, or by the next worker."""

WAITING_MAX = 16
"""How many folders may wait to be deleted while their slots are used again. More would fill the disk faster than it is
freed."""


@dataclass(frozen=True, slots=True)
class Scratch:
    folder: Path
    removal: "FolderRemoval"


class FolderRemoval:
    """Deletes folders, one after another, with all that is in them. No link is followed."""

    def __init__(self) -> None:
        self._folders: deque[tuple[Path, int | None]] = deque()
        self._changed = threading.Condition()
        self._is_ending = False
        self._thread: threading.Thread | None = None

    def remove(self, folder: Path, lock: int | None = None) -> None:
        """Delete a folder, at once if nothing else waits. `lock` is a descriptor that is closed afterwards."""
        with self._changed:
            self._folders.append((folder, lock))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="remove folders", daemon=True)
                self._thread.start()

    async def remove_when_few_wait(self, folder: Path) -> None:
        """Delete a folder, but not before fewer than WAITING_MAX folders wait, or the worker ends."""
        while len(self._folders) >= WAITING_MAX and not self._is_ending:  # noqa: ASYNC110 - a thread makes the room
            await asyncio.sleep(0.05)
        self.remove(folder)

    def end(self) -> None:
        """The worker ends: `remove_when_few_wait` waits no longer."""
        self._is_ending = True

    def wait(self, seconds: float) -> bool:
        """Wait until all is deleted, but no longer than this. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._folders, seconds)

    def _run(self) -> None:
        while True:
            folder, lock = self._folders[0]
            try:
                remove_folder(folder)
            except OSError as error:
                log.warning("a folder of a run cannot be deleted", folder=str(folder), error=error.strerror)
            if lock is not None:
                os.close(lock)
            with self._changed:
                self._folders.popleft()
                self._changed.notify_all()
                if not self._folders:
                    self._thread = None
                    return


def remove_folder(folder: Path) -> None:
    """Remove the folder if it is there. Raises OSError."""
    with suppress(FileNotFoundError):
        with open_folder(folder.parent) as above:
            make_accessible(folder.name, above, os.lstat(folder).st_mode)
            with open_folder(above, folder.name) as opened:
                empty(opened)
        folder.rmdir()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Scratch]:
    """A new folder below `parent`, for this process alone."""
    removal = FolderRemoval()
    _remove_abandoned(parent, removal)
    folder, lock = _make_locked(parent)
    try:
        yield Scratch(folder, removal)
    finally:
        removal.remove(folder, lock)
        if not removal.wait(PATIENCE_SECONDS):
            log.warning("files of runs are left for the next worker to delete", folder=str(folder))


def _make_locked(parent: Path) -> tuple[Path, int]:
    # Until it is locked, a worker that starts at the same moment takes the folder for an abandoned one.
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_abandoned(parent: Path, removal: FolderRemoval) -> None:
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        if os.fstat(lock).st_uid == os.getuid():
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if killed := end_sandboxes_of(folder):
                    log.info("sandboxes of a worker that was killed are ended", folder=str(folder), sandboxes=killed)
                removal.remove(folder, lock)
                continue
        os.close(lock)
    if not removal.wait(PATIENCE_SECONDS):
        log.warning("files that an ended worker has left are deleted while this one works")
