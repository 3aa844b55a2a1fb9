"""What the runner asks of the system it runs on: its processes, its memory, its files."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    Signature = tuple[int, int, int, int]

KILL_SECONDS = 5.0
BYTECODE_FOLDER = "__pycache__"

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def signature(status: os.stat_result) -> Signature:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def dumpable(yes: bool) -> None:
    """Whether other processes of the same user may look into this one (prctl PR_SET_DUMPABLE)."""
    ctypes.CDLL(None).prctl(4, 1 if yes else 0, 0, 0, 0)


class _Program(ctypes.Structure):
    """`struct sock_fprog`"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def filter_system_calls(program: bytes) -> None:
    """Let the kernel apply a filter (`worker.sandbox.system_calls`) to this thread and all it starts, for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    described = _Program(len(program) // 8, program)
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
    for words in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(described), 0, 0)):
        if libc.prctl(*words) != 0:
            raise OSError(ctypes.get_errno(), "cannot filter system calls")


def processes() -> dict[int, tuple[int, str]]:
    """All processes here: parent and state."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                found[int(name)] = (int(fields[1]), fields[0])
    return found


def processes_of_all() -> int:
    count = 0
    for pid in processes():
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def kill_others() -> None:
    """Kill all but this process and those that came from outside, which have no parent here."""
    until = time.monotonic() + KILL_SECONDS
    passes = 0
    while True:
        others = [
            pid
            for pid, (parent, state) in processes().items()
            if pid != os.getpid() and parent != 0 and state not in "ZX"
        ]
        if not others:
            return
        if passes > 20:
            # Something forks as fast as it is killed. This one call gets all, the worker's pipe too: it comes back.
            os.kill(-1, signal.SIGKILL)
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return
        passes += 1
        time.sleep(0.001 if passes < 10 else 0.01)


def out_of_memory_kills() -> int:
    """How often the kernel ended a process here because memory was used up; control groups of version 2, then 1."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def walk(
    root: str, *, with_folders: bool = False, beside_bytecode: list[str] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below but bytecode caches, and but folders unless they are wanted too, by its path from there. Follows
    no link; gives itself the rights that it needs. Each folder is opened from the one above it, so no path is too
    long. `beside_bytecode` gets the paths of what else lies in a bytecode cache."""
    stack = [(os.open(root, _OPEN_FOLDER), "", [""])]
    try:
        while stack:
            folder, path, names = stack[-1]
            if not names:
                stack.pop()
                os.close(folder)
                continue
            name = names.pop()
            if name:
                path = path + "/" + name if path else name
                stack.append((os.open(name, _OPEN_FOLDER, dir_fd=folder), path, []))
            folder, path, names = stack[-1]
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    is_folder = stat.S_ISDIR(status.st_mode)
                    if is_folder and status.st_mode & 0o700 != 0o700:
                        os.chmod(entry.name, 0o700, dir_fd=folder)
                    if is_folder and entry.name == BYTECODE_FOLDER:
                        if beside_bytecode is not None:
                            cache = path + "/" + entry.name if path else entry.name
                            beside_bytecode.extend(_beside_bytecode(folder, cache))
                        continue
                    if is_folder:
                        names.append(entry.name)
                    if with_folders or not is_folder:
                        yield path + "/" + entry.name if path else entry.name, status
    finally:
        for folder, _, _ in stack:
            os.close(folder)


def _beside_bytecode(above: int, cache: str) -> list[str]:
    folder = os.open(BYTECODE_FOLDER, _OPEN_FOLDER, dir_fd=above)
    try:
        return [cache + "/" + name for name in os.listdir(folder) if not _is_bytecode(name)]
    finally:
        os.close(folder)


def _is_bytecode(name: str) -> bool:
    """Also where Python has not come to give it its last name: `a.cpython-311.pyc.139872`."""
    begin, _, number = name.rpartition(".")
    return name.endswith(".pyc") or (number.isdigit() and begin.endswith(".pyc"))


def clear(root: str) -> None:
    """Remove everything. Folders within folders are moved up first, so depth does not matter."""
    names = itertools.count()
    top = os.open(root, _OPEN_FOLDER)
    try:
        while True:
            found = os.listdir(top)
            if not found:
                return
            for name in found:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                folder = os.open(name, _OPEN_FOLDER, dir_fd=top)
                try:
                    for inner in os.listdir(folder):
                        if stat.S_ISDIR(os.lstat(inner, dir_fd=folder).st_mode):
                            os.chmod(inner, 0o700, dir_fd=folder)  # a folder is moved only by who may write to it
                        os.rename(inner, f".{time.monotonic_ns()}-{next(names)}", src_dir_fd=folder, dst_dir_fd=top)
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def keep_folders(root: str, kept: set[str]) -> None:
    """Remove the folders, with all that is in them, whose paths are not among these."""
    aside = f".{time.monotonic_ns()}"
    os.mkdir(os.path.join(root, aside), 0o700)
    number = itertools.count()
    waiting = [""]
    while waiting:
        above = waiting.pop()
        folder = os.open(os.path.join(root, above), _OPEN_FOLDER)
        try:
            for name in os.listdir(folder):
                path = above + "/" + name if above else name
                if path == aside or not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                    continue
                if path in kept:
                    waiting.append(path)
                else:
                    os.chmod(name, 0o700, dir_fd=folder)
                    os.rename(name, os.path.join(root, aside, str(next(number))), src_dir_fd=folder)
        finally:
            os.close(folder)
    clear(os.path.join(root, aside))
    os.rmdir(os.path.join(root, aside))


def set_attributes(path: str, mode: int, modified: int) -> None:
    """Of a file or a folder; follows no link."""
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fchmod(opened, mode)
        os.utime(opened, ns=(modified, modified))
    finally:
        os.close(opened)


def has_extended_attributes(path: str) -> bool:
    """Whether a command has given a file some; what a security module of the system adds is not the command's."""
    with contextlib.suppress(OSError):
        return any(
            name.startswith("user.") or name in ("security.capability", "system.posix_acl_access")
            for name in os.listxattr(path, follow_symlinks=False)
        )
    return False


def put_copy(path: str) -> os.stat_result:
    """Put a copy in place of a file that has several names; how that looks."""
    status = os.lstat(path)
    new = os.path.join(os.path.dirname(path), f".{time.monotonic_ns()}")
    with open(path, "rb", buffering=0) as file, open(new, "xb", buffering=0) as copy:
        while True:
            chunk = file.read(1024 * 1024)
            if not chunk:
                break
            write_all(copy, chunk)
    set_attributes(new, stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    os.rename(new, path)
    return os.lstat(path)


def write_all(file: BinaryIO, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[file.write(view) :]
