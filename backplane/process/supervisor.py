"""Child processes: started, awaited until they are ready, started again when they end, and stopped.

`agentctl up` keeps the whole platform running by it. A child is in a session of its own, so that Ctrl-C in a terminal
reaches the parent alone, which then stops its children in the right order. When the parent itself is killed, the kernel
ends its children (Linux), so no process is left that holds a port or goes on with work.

What a child prints goes to a file or to nowhere, never into a pipe: a pipe that nobody reads stops its writer.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backplane.errors import Unavailable
from backplane.process.tasks import uninterrupted

LOG_BYTES = 10 * 1024 * 1024
LOOK_SECONDS = 0.02
"""Between two questions whether a child is ready."""

PROJECT = Path(__file__).resolve().parents[2]

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


def keep_descriptors_from_children() -> None:
    """Let no child of this process have the files that whoever started it left open for it: a lock of a shell, a socket
    of a service manager. uvloop closes none of them in a child, so a command in a sandbox could write to them. Python's
    own files are none of a child's already."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # that of this list is closed by now
                os.set_inheritable(int(name), False)


Report = Callable[[str, str], None]
"""Takes what happened (`ended`, `not_started`, `started`) and a sentence about it."""


@dataclass(frozen=True, slots=True)
class RestartPauses:
    """Seconds between the end of a process and its next start: `first`, then twice as long each time, at most
    `longest`. A process that lived for `steady` seconds was fine: after it the pauses begin with `first` again."""

    first: float = 0.5
    longest: float = 30.0
    steady: float = 60.0

    def after(self, before: float | None, lived: float) -> float:
        """The next pause. `before` is the last one, None when there was none; `lived` is how long the process ran."""
        return self.first if before is None or lived >= self.steady else min(2 * before, self.longest)


class Part(Protocol):
    """What can be kept running. `exited` waits for the end of the process and gives its exit code (-n: by signal n)."""

    async def start(self) -> None: ...

    async def exited(self) -> int: ...

    def last_words(self) -> str: ...


class ChildProcess:
    """A program as a child process. `name` is for people.

    Output goes to the file `log`, which is moved to `….1` before a start that finds it longer than LOG_BYTES; without
    `log` it goes nowhere. `on_parents_death` is the signal that the kernel sends to it when this process ends.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        folder: Path | None = None,
        on_parents_death: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._environment = environment
        self._folder = folder
        self._on_parents_death = on_parents_death
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        """None before its first start and while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start it, if it does not run. Must be called in the main thread: the kernel ends the child when the thread
        that started it ends. Raises OSError when the program or its log cannot be opened. A start that is cancelled is
        completed first, so that `stop` ends the process."""
        if self.pid is None:
            await uninterrupted(self._spawn())

    async def _spawn(self) -> None:
        output = subprocess.DEVNULL if self.log is None else self._opened(self.log)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *dies_with_parent(self._argv, self._on_parents_death),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
            )
        finally:
            if output != subprocess.DEVNULL:
                os.close(output)

    def _opened(self, log: Path) -> int:
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        self._log_start = log.stat().st_size if log.exists() else 0
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def until_ready(self, is_ready: Callable[[], Awaitable[bool]], seconds: float) -> None:
        """Wait until `is_ready` says so. Raises Unavailable, with the last lines of its log, when the process ends
        first or is not ready within `seconds`; it is not stopped then."""
        try:
            async with asyncio.timeout(seconds):
                while not await is_ready():
                    if self.pid is None:
                        raise self._not_ready(f"{self.name} {how_it_ended(self.returncode or 0)} at its start.")
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise self._not_ready(f"{self.name} is not ready after {seconds:g} s.") from None

    def _not_ready(self, sentence: str) -> Unavailable:
        return Unavailable(f"{sentence}\n{self.last_words()}".rstrip(), part=self.name)

    async def exited(self) -> int:
        """Wait for its end; its exit code (-n: ended by signal n)."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return await self._process.wait()

    def last_words(self) -> str:
        """The last lines that it has printed since its last start, to stand under a sentence."""
        return last_lines(self.log, self._log_start) if self.log else ""

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and kill it and what it has started when it takes longer than that. Nothing when it does not
        run."""
        if self.pid is None:
            return
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self.exited()
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


async def keep_running(part: Part, name: str, report: Report, pauses: RestartPauses | None = None) -> None:
    """Start `part`, which has been started before, again whenever it ends, after a pause that grows while it keeps
    ending. Runs until it is cancelled; cancel it before the part is stopped."""
    pauses = pauses or RestartPauses()
    clock = asyncio.get_running_loop().time
    pause: float | None = None
    while True:
        began = clock()
        code = await part.exited()
        pause = pauses.after(pause, clock() - began)
        sentence = f"{name} {how_it_ended(code)}; starting it again in {pause:g} s."
        report("ended", f"{sentence}\n{part.last_words()}".rstrip())
        await asyncio.sleep(pause)
        try:
            await part.start()
        except (Unavailable, OSError) as error:
            report("not_started", f"{name} did not start: {error}")
        else:
            report("started", f"{name} is started again.")


async def stop_together(children: Sequence[ChildProcess], grace_seconds: float) -> None:
    """Stop these at once, each with this grace."""
    await asyncio.gather(*(child.stop(grace_seconds) for child in children))


def dies_with_parent(argv: Sequence[str], ending: signal.Signals = signal.SIGTERM) -> list[str]:
    """`argv` so wrapped that the program gets the signal when the thread that starts it ends (in an asyncio program:
    the main thread, so the process), even by SIGKILL. Linux only; elsewhere `argv` as it is."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _ASK_THEN_EXEC, str(os.getpid()), str(int(ending)), *argv]


def python_module(*arguments: str) -> list[str]:
    """The argv of a Python module of this project: `python -m MODULE …` with this interpreter."""
    return [sys.executable, "-m", *arguments]


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
    project to be imported, wherever the parent was called. Texts of users become arguments of commands, which in a
    locale that is not UTF-8 could not be started."""
    replaced = {name.lower() for name in variables}
    kept = {name: value for name, value in base.items() if name.lower() not in replaced}
    path = os.pathsep.join(filter(None, [str(PROJECT), base.get("PYTHONPATH", "")]))
    return {**kept, **variables, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
