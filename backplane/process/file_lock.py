"""A lock between processes on one file, waited for without holding a thread.

By flock: the kernel lets go of it when its process ends, however it ends, so nobody finds a lock that was left behind.
The file itself stays; removing it would let two hold "the" lock. On a network file system it holds as far as that one
supports flock (NFS 4 does).
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from backplane.process.tasks import in_thread

PAUSE_SECONDS = 0.01


class LockBusy(Exception):
    """Another process had the lock during the whole wait."""


@asynccontextmanager
async def file_lock(path: Path, wait_seconds: float) -> AsyncIterator[None]:
    """The lock is this process's while the block runs. The file and its folders are made. Raises LockBusy, and OSError
    where the file cannot be made."""
    lock = _Lock(path)
    until = time.monotonic() + wait_seconds
    try:
        while not await in_thread(lock.take):
            if time.monotonic() >= until:
                raise LockBusy(f"{path.name} has been in use for {wait_seconds:g} s")
            await asyncio.sleep(PAUSE_SECONDS)
        yield
    finally:
        lock.release()


class _Lock:
    # An object, and not what `take` returns: a call that is cancelled while its thread runs loses the answer, not this.
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
