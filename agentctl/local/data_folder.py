"""The folder that `agentctl up` keeps everything in: its owner's alone, and one `agentctl up`'s at a time.

token         the first user's bearer token         redis.url     the URL of Redis, password inside
agent.db      the database (SQLite)                 redis/        the data of the embedded Redis
workspaces/   the files of the runs                 logs/         what the processes print
memory/       what agents remember                  artifacts/    what agents keep
secrets.key   seals the users' secrets             redis.password    that of the embedded Redis
lock          the pid of the `agentctl up` that runs; gone with it
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentctl.exit_codes import CommandError, ExitCode

_OURS = {
    *("token", "agent.db", "redis", "redis.url", "redis.password", "logs", "lock", "workspaces", "memory"),
    *("artifacts", "secrets.key"),
}


def prepare(data: Path) -> None:
    """Make the folder, with mode 0700. Raises CommandError for one that is full of something else: closing the home
    folder or /tmp to all others would be a bad surprise."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = set(os.listdir(data))
        if content and not content & _OURS:
            message = f"{data} holds other things. Name a new or an empty folder with --data."
            raise CommandError(ExitCode.USAGE, message)
        data.chmod(0o700)
        (data / "logs").mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        message = f"{data} is no folder, or a part of its path is a file. Name a folder with --data."
        raise CommandError(ExitCode.USAGE, message) from None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{data} cannot be used: {error}. Name another with --data.") from None


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold the folder. The kernel lets go of it when this process ends, however it ends. Raises CommandError."""
    path = data / "lock"
    descriptor = _take(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file between the two calls; then this is a lock on nothing.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise CommandError(
                ExitCode.REFUSED,
                f"{path.parent} is in use by another `agentctl up`, process {holder}. Stop it (kill {holder}), or name "
                "another folder with --data and another --port.",
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """What the file holds; a new one is made and kept where there is none."""
    if not path.exists():
        write_secret(path, f"{make()}\n")
    path.chmod(0o600)
    return path.read_text("ascii").strip()


def write_secret(path: Path, text: str) -> None:
    """Replace the file by one that nobody else could read at any moment."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)
