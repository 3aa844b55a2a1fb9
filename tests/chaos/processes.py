"""The platform's own processes, started as production starts them, to be killed, stopped and started again.

Each has the same connections in every life: its own proxies, so that one alone can be cut off. All of them carry a
mark in their environment, by which those that outlived the platform are found.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from backplane.process.supervisor import dies_with_parent

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
LEAVING_SECONDS = 20.0
MARKER = "CHAOS_ID"


class Process:
    """`python -m …` with this environment; the log of all its lives is one file."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.environment = dict(environment)
        self.overstayed = 0
        self._arguments = arguments
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    def set_clock(self, offset_seconds: float) -> None:
        """From its next start on, its host's clock is off by so much."""
        shifted = Path(__file__).parent / "shifted_clock"
        self.environment |= {
            "PYTHONPATH": os.pathsep.join((str(shifted), str(ROOT))),
            "CLOCK_OFFSET_SECONDS": str(offset_seconds),
        }

    async def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *dies_with_parent([sys.executable, "-m", *self._arguments], signal.SIGKILL),
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    async def end(self) -> int:
        """Ask it to end. Its exit code; one that does not go in time is killed, and counted in `overstayed`."""
        assert self._process is not None
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(LEAVING_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self.overstayed += 1
            await self.kill()
            return -signal.SIGKILL


def api(environment: Mapping[str, str], port: int, log: Path) -> Process:
    options = ["--host", HOST, "--port", str(port), "--no-access-log", "--timeout-graceful-shutdown", "2"]
    return Process("api", ["uvicorn", "app.main:create_app", "--factory", *options], environment, log)


def own_environment(marker: str, scratch: Path) -> dict[str, str]:
    """What a process has beside the platform's settings."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(scratch),
        MARKER: marker,
    }


def left_over(marker: str, folder: Path) -> list[str]:
    """Processes that carry the marker, or in whose command line the folder stands (a sandbox has no environment)."""
    signs = (f"{MARKER}={marker}".encode(), os.fsencode(folder))
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if command and any(
                sign in part for sign in signs for part in (command, (process / "environ").read_bytes())
            ):
                found.append(f"{process.name} {command.replace(bytes(1), b' ').decode(errors='replace').strip()[:200]}")
        except OSError:
            continue
    return found
