"""The processes that `agentctl up` owns: started apart from its terminal, watched, started again, and ended.

Each is in a session of its own, so that Ctrl-C reaches agentctl alone, which then ends them in the right order. When
agentctl itself is killed, the kernel kills them (Linux), so nothing is left that holds the port or works on.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from agentctl.local.embedded import dies_with_parent
from backplane.errors import Unavailable

LOG_BYTES = 10 * 1024 * 1024
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that lived this long was fine: when it dies, the pauses start from the shortest again."""

PROJECT = Path(__file__).resolve().parents[2]

Tell = Callable[[str, str], None]
"""Takes what happened (a stable word) and a sentence about it."""


class Part(Protocol):
    """What can be kept running. `exited` waits for the end of the process and gives its exit code (-n: by signal n)."""

    async def start(self) -> None: ...

    async def exited(self) -> int: ...

    def last_words(self) -> str: ...


class ChildProcess:
    """A Python module of this project as a process. What it prints goes to `log`, which is turned over at LOG_BYTES."""

    def __init__(self, name: str, module: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = [sys.executable, "-m", *module]
        self._environment = environment
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Must be called in the main thread, on whose end the kernel kills the process."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *dies_with_parent(self._argv, signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=self._environment,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    async def exited(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return await self._process.wait()

    def last_words(self) -> str:
        """What it has printed last, to stand under a sentence."""
        return last_lines(self.log, self._log_start)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and kill it when it takes longer than that."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                if self._process is not None:
                    await self._process.wait()
        except TimeoutError:
            self.kill()
            await self.exited()

    def kill(self) -> None:
        """The process and what it has started."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def keep_running(part: Part, name: str, tell: Tell) -> None:
    """Start `part` again whenever it ends, after a pause that grows while it keeps ending. Runs until cancelled."""
    clock = asyncio.get_running_loop().time
    pause = FIRST_PAUSE_SECONDS
    while True:
        began = clock()
        code = await part.exited()
        if clock() - began >= STEADY_SECONDS:
            pause = FIRST_PAUSE_SECONDS
        sentence = f"{name} {how_it_ended(code)}; starting it again in {pause:g} s."
        tell("ended", f"{sentence}\n{part.last_words()}".rstrip())
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        try:
            await part.start()
        except (Unavailable, OSError) as error:
            tell("not_started", f"{name} did not start: {error}")
        else:
            tell("started", f"{name} is started again.")


def how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def last_lines(log: Path, start: int = 0, count: int = 12) -> str:
    """The end of a log, from byte `start` at the earliest, indented; empty when there is nothing."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 16 * 1024))
            lines = file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return ""
    return "\n".join(f"    {line[:400]}" for line in [f"The end of {log}:", *lines]) if lines else ""


def child_environment(variables: Mapping[str, str], base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`base` with `variables` instead of any spelling of theirs (settings are read without regard to case), and this
    project to be imported, wherever agentctl was called. Texts of users become arguments of commands, which in a locale
    that is not UTF-8 could not be started."""
    replaced = {name.lower() for name in variables}
    kept = {name: value for name, value in base.items() if name.lower() not in replaced}
    path = os.pathsep.join(filter(None, [str(PROJECT), base.get("PYTHONPATH", "")]))
    return {**kept, **variables, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
