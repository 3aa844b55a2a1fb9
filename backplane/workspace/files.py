"""Local files in a tree that someone hostile may have shaped, and blocking work on them.

Every path is walked one folder at a time, from a folder already held open, never through a symbolic link: whatever
the tree is changed into meanwhile, nothing outside of it is read, written or removed. Trees are emptied level by level
without recursion and without long paths, so neither depth nor a folder without permissions stops it.
"""

import asyncio
import contextlib
import errno
import functools
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from typing_extensions import Buffer

from backplane.errors import Conflict, InvalidPath, NotFound, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Of a disk, what lasts until somebody has mended it."""
CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class SerialThread:
    """Short blocking calls, one after another in one thread; what is asked for during one turn makes up the next.

    A hop into a thread for each small file costs more than the file, and several threads at once take twice as long as
    one: they wait for one interpreter. For what takes long there is `in_thread`.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = []
        self._busy = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Cancelled before its turn, the call is left out; in its turn, the turn is waited for, as by `in_thread`."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = (outcome, functools.partial(function, *args, **kwargs))
        self._waiting.append(call)
        if not self._busy:
            self._take_turn()
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            if call in self._waiting:
                self._waiting.remove(call)
            else:
                await asyncio.wait((outcome,))
                if not outcome.cancelled():
                    outcome.exception()
            raise

    def _take_turn(self) -> None:
        outcomes, calls = zip(*self._waiting, strict=True)
        turn = asyncio.get_running_loop().run_in_executor(None, _results, calls)
        self._waiting, self._busy = [], True
        turn.add_done_callback(functools.partial(self._turn_ended, outcomes))

    def _turn_ended(
        self, outcomes: tuple[asyncio.Future[Any], ...], turn: asyncio.Future[list[tuple[Any, Exception | None]]]
    ) -> None:
        self._busy = False
        for outcome, (result, error) in zip(outcomes, turn.result(), strict=True):
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)
        if self._waiting:
            self._take_turn()


def _results(calls: Iterable[Callable[[], Any]]) -> list[tuple[Any, Exception | None]]:
    results: list[tuple[Any, Exception | None]] = []
    for call in calls:
        try:
            results.append((call(), None))
        except Exception as error:
            results.append((None, error))
    return results


@contextlib.contextmanager
def open_folder(root: int | Path, path: str = "", *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder at `path` below `root`; `root` itself is the platform's and may be a link."""
    folder = os.dup(root) if isinstance(root, int) else os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in path.split("/") if path else ():
            try:
                inner = os.open(name, OPEN_FOLDER, dir_fd=folder)
            except FileNotFoundError:
                if not create:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folder)
                inner = os.open(name, OPEN_FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def split(path: str) -> tuple[str, str]:
    """Folder and name: `a/b/c` gives `a/b` and `c`."""
    folder, _, name = path.rpartition("/")
    return folder, name


def open_regular(name: str, folder: int) -> int:
    """A descriptor to read a plain file; raises InvalidPath for anything else, without waiting for a pipe's writer."""
    try:
        file = os.open(name, READ_FILE, dir_fd=folder)
    except PermissionError:
        os.chmod(name, 0o600, dir_fd=folder, follow_symlinks=False)
        file = os.open(name, READ_FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidPath(f"{name!a} is not a plain file.", field="path")
    return file


def make_accessible(name: str, folder: int, mode: int) -> None:
    """Give the owner his rights on a folder, whose present mode is `mode`, back."""
    if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=folder, follow_symlinks=False)


def move_away(name: str, folder: int, trash: int) -> None:
    """Remove whatever has this name: a folder is moved to `trash` as it is, anything else is unlinked."""
    status = os.lstat(name, dir_fd=folder)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=folder)
        return
    make_accessible(name, folder, status.st_mode)
    os.rename(name, secrets.token_hex(12), src_dir_fd=folder, dst_dir_fd=trash)


def empty(trash: int) -> None:
    """Remove everything in a folder. Folders within folders are moved up first, so depth does not matter."""
    while names := os.listdir(trash):
        for name in names:
            status = os.lstat(name, dir_fd=trash)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=trash)
                continue
            make_accessible(name, trash, status.st_mode)
            with open_folder(trash, name) as folder:
                for inner in os.listdir(folder):
                    move_away(inner, folder, trash)
            os.rmdir(name, dir_fd=trash)


@contextlib.contextmanager
def translated(path: str, *, missing: str | None = None) -> Iterator[None]:
    """Turns an OSError into one of the platform's: NotFound (or Conflict with the text `missing`), Unavailable…"""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if missing is not None:
            raise Conflict(missing) from error
        raise NotFound(f"There is no file {path!a} in the workspace.") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InvalidPath(f"{path!a} leads through a symbolic link, which is refused.", field="path") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidPath(f"The path {path!a} is too long for the disk.", field="path") from error
        raise Unavailable(
            f"The workspace's disk does not take part: {error.strerror or type(error).__name__}. "
            "Free space or mend it, then try again.",
            part="workspace",
            refuses=error.errno in REFUSALS,
        ) from error


def incoming_file(root: Path, opened: contextlib.ExitStack) -> Path:
    """The path of a file to be, removed in the end unless it has been moved."""
    incoming = root / ".incoming" / secrets.token_hex(16)
    opened.callback(incoming.unlink, missing_ok=True)
    with translated(incoming.name):
        incoming.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return incoming


def write_all(file: FileIO, content: Buffer) -> None:
    """A write of the system may take a part of it."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
