"""A command with caps but no walls, for machines that allow no sandbox: it sees and changes what the worker can.

Limits are set by a shell in front of the command, by the options that all shells share. A process group is killed, and
the control group where there is one; without that, a process which made itself a session of its own gets away.
"""

import asyncio
import contextlib
import errno
import os
import signal
import sys
from pathlib import Path

from backplane.errors import InvalidInput, Unavailable
from backplane.process.tasks import uninterrupted
from worker.sandbox.base import EVERYWHERE, UMASK, Command, Limits
from worker.sandbox.local.cgroup import ControlGroup
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

_BLOCK_BYTES = 512
_SCRIPT = """
ulimit -c 0
ulimit -n "$1" 2>/dev/null
ulimit -f "$2" 2>/dev/null
ulimit -Ht "$4" 2>/dev/null
ulimit -St "$3" 2>/dev/null
ulimit -v "$5" 2>/dev/null
ulimit -u "$6" 2>/dev/null || ulimit -p "$6" 2>/dev/null
groups=$7
shift 7
for file in $groups; do echo 0 > "$file" || exit 126; done
exec "$@"
"""


def _before_exec() -> None:
    """In the child. uvloop takes none of these as arguments."""
    os.umask(UMASK)
    os.nice(NICE)


class UnisolatedTree(ProcessTree):
    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._group: ControlGroup | None = None

    async def start(
        self, command: Command, folder: Path, given: InputPipe, output: OutputPipe, group: ControlGroup
    ) -> None:
        await uninterrupted(self._spawn(command, folder, given, output, group))

    async def _spawn(
        self, command: Command, folder: Path, given: InputPipe, output: OutputPipe, group: ControlGroup
    ) -> None:
        self._group = group
        environment = {
            "PATH": f"{sys.base_prefix}/bin:{SYSTEM_PATH}",
            "HOME": str(folder),
            **EVERYWHERE,
        }
        # It reads of all processes of the machine, and others use the loop.
        words = await asyncio.to_thread(_script_arguments, command.limits, group)
        try:
            self._process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", _SCRIPT, "sh", *words, *command.argv,
                stdin=given.read_end,
                stdout=output.write_end,
                stderr=output.write_end,
                env={**environment, **command.environment},
                cwd=folder,
                preexec_fn=_before_exec,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise InvalidInput(COMMAND_TOO_LONG) from error
            raise Unavailable(f"cannot start /bin/sh: {error.strerror}", part="sandbox") from error
        given.close_read_end()
        output.close_write_end()

    async def wait(self) -> int:
        assert self._process is not None
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def processes(self) -> list[int]:
        """Those of its session: one that made itself another is not found."""
        found = []
        for process in all_processes():
            with contextlib.suppress(ProcessLookupError):
                if self._process is not None and os.getsid(process) == self._process.pid:
                    found.append(process)
        return found

    async def kill(self) -> None:
        if self._process is None or self._group is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._group.kill()
        await self._process.wait()


def _script_arguments(limits: Limits, group: ControlGroup) -> list[str]:
    present = _processes_of_this_user()
    memory = "unlimited" if group.caps_memory else str(limits.memory_bytes // 1024)
    return [
        str(OPEN_FILES),
        str(max(1, limits.file_bytes // _BLOCK_BYTES)),
        str(limits.cpu_seconds),
        str(limits.cpu_seconds + 1),
        memory,
        # This limit counts all processes of the user, not only the command's: no limit where they cannot be counted.
        str(present + limits.processes + EXTRA_PROCESSES) if present else "unlimited",
        " ".join(str(file) for file in group.join_files),
    ]


def _processes_of_this_user() -> int:
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                count += len(os.listdir(folder / "task"))
    return count
