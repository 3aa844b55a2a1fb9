"""One container for one command: the script that is its first process, its start, its report, its end.

The engine's program stays in the foreground, like any child process. Process 1 of the container is a small shell
script. It takes the exit status of whatever loses its parent, cannot be killed from within, joins output and error in
one pipe (an engine moves the two apart, and mixes up their order), and reports on its own standard error, which no
command has, when the command begins, how it ended, and whether the kernel killed something for the container's memory.
An end is believed only where that report and the exit code of the engine's program do not contradict each other, for
the code alone may as well be an engine's failure.
"""

import asyncio
import contextlib
import os
import re
import signal
from typing import Any, Self

from backplane.errors import Unavailable
from backplane.process.tasks import uninterrupted
from worker.sandbox.base import UMASK, Ending, SandboxError
from worker.sandbox.container.engine import Engine, refusal
from worker.sandbox.local.pipes import OutputPipe
from worker.sandbox.local.process import SIGNALS_OF_LIMITS

INPUT = "/run/sandbox-input"
VARIABLES = "/run/sandbox-variables"
FIRST_PROCESS = f"""
exec 9>&2 2>/dev/null
umask {UMASK:04o}
[ -e {INPUT} ] && exec < {INPUT}
echo sandbox-started >&9
([ -e {VARIABLES} ] && . {VARIABLES}; exec "$@" 2>&1 9>&-)
code=$?
echo "sandbox-ended $code" >&9
for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ -r $file ] && while read -r name count; do echo "$name $count" >&9; done < $file
done
exit $code
"""
_STARTED = b"sandbox-started\n"
_ENDED = re.compile(rb"^sandbox-ended (\d+)$", re.MULTILINE)
_OOM_KILLS = re.compile(rb"^oom_kill [1-9]", re.MULTILINE)
_REPORT_BYTES = 64 * 1024

_SETTLE_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0
_NAME_TAKEN = "is already in use"


class Container:
    """The container of one command: `start` until it answers True, then `exited`; `remove` whatever happened before.
    `words` is the whole command line, `pass_fds` are the files that the engine's program inherits."""

    def __init__(self, engine: Engine, image: str, name: str, words: list[str], pass_fds: tuple[int, ...]) -> None:
        self._engine = engine
        self._image = image
        self._name = name
        self._words = words
        self._pass_fds = pass_fds
        self._process: asyncio.subprocess.Process | None = None
        self._report = b""
        self._started = asyncio.Event()
        self._pipe = OutputPipe(self._take_report)

    def __enter__(self) -> Self:
        self._pipe.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pipe.__exit__(*error)

    def _take_report(self, chunk: bytes) -> None:
        self._report = (self._report + chunk)[-_REPORT_BYTES:]
        if _STARTED in self._report:
            self._started.set()

    async def start(self, out: OutputPipe, seconds: float) -> bool:
        """Wait until the command begins. False when the name was taken, and is free now."""
        await uninterrupted(self._spawn(out))
        if not await self._begins(seconds):
            raise Unavailable(
                f"{self._engine.name} has not started a container within {seconds:g} seconds "
                "(SANDBOX_START_SECONDS); see what it is busy with",
                part="sandbox",
            )
        if self._started.is_set():
            return True
        report = self._report.decode("utf-8", "replace")
        if _NAME_TAKEN in report:
            self._report = b""
            if await self._engine.remove(self._name):
                return False
        raise refusal(self._engine, self._image, report)

    async def _spawn(self, out: OutputPipe) -> None:
        self._process = await self._engine.start(
            self._words, stdout=out.write_end, stderr=self._pipe.write_end, pass_fds=self._pass_fds
        )

    async def _begins(self, seconds: float) -> bool:
        """Whether, in that time, the command began or the engine's program gave up."""
        assert self._process is not None
        waits = {asyncio.create_task(self._started.wait()), asyncio.create_task(self._process.wait())}
        try:
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._pipe.drain()
        return bool(done)

    async def exited(self) -> tuple[Ending, int, str]:
        """Why a command that ended by itself ended. Raises SandboxError when it was not by itself."""
        assert self._process is not None
        code = await self._process.wait()
        self._pipe.drain()
        if (ended := self._own_end()) is None:
            report = self._report.replace(_STARTED, b"").decode("utf-8", "replace").strip()
            raise SandboxError(
                f"a container was ended from outside ({self._engine.name}: {code} {report[-500:]}): somebody stopped "
                "it, or the engine, or the machine has no memory left; how far the command came is not known"
            )
        code = int(ended[1])
        # A command that coped with the loss of a process to its memory cap is fine.
        if code != 0 and _OOM_KILLS.search(self._report, ended.end()):
            return Ending.MEMORY, code, "it used all its memory (SANDBOX_MEMORY_BYTES)"
        return Ending.EXITED, code, SIGNALS_OF_LIMITS.get(code, "")

    def _own_end(self) -> "re.Match[bytes] | None":
        """The report of process 1 on its end, where the exit code of the engine's program does not contradict it."""
        *_, ended = (None, *_ENDED.finditer(self._report))
        if ended is None or self._process is None:
            return None
        # Docker's program, talking to a service of Podman's, says 0 of any end.
        return ended if self._process.returncode in (0, int(ended[1])) else None

    async def remove(self) -> None:
        """Remove the container. The engine removes by itself one that has ended by itself."""
        if self._process is None:
            return
        # An engine that is asked to remove what it is about to make has nothing to remove yet, and makes it then.
        if self._process.returncode is None and not self._started.is_set():
            await self._begins(_SETTLE_SECONDS)
        if self._own_end() is None:
            await self._engine.remove(self._name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._process.wait()
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
