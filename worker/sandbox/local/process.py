"""A command with everything it started, as one thing that can be waited for and killed."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from worker.sandbox.base import Command, Limits
from worker.sandbox.local.cgroup import ControlGroup
from worker.sandbox.local.pipes import InputPipe, OutputPipe

T = TypeVar("T")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 1024
EXTRA_PROCESSES = 2
"""What a limit on processes must allow on top of the command's own: the sandbox's first process, and a spare."""
NICE = 10
"""Added to the nice value of a command and of what sets it up, so that the worker and its neighbours go first."""
KILLED = 128 + 9
SIGNALS_OF_LIMITS = {
    128 + 24: "it used all its CPU time (SANDBOX_CPU_SECONDS)",
    128 + 25: "it wrote a file that is too large (SANDBOX_FILE_BYTES)",
}
"""What an exit code says of the cap that was reached."""
COMMAND_TOO_LONG = "the command is too long for this machine: put what is long into a file of the workspace first"


class ProcessTree(ABC):
    """`start` once, then `wait`, then `kill` whatever happened before."""

    @abstractmethod
    async def start(
        self, command: Command, folder: Path, given: InputPipe, output: OutputPipe, group: ControlGroup
    ) -> None:
        """Start the command under all its caps. It may be cancelled: `kill` finds whatever was started. Raises
        Unavailable, InvalidInput or OSError."""

    @abstractmethod
    async def wait(self) -> int:
        """Exit code of the command itself: 128 + n where signal n ended it, 127 where it was not found."""

    @abstractmethod
    def processes(self) -> list[int]:
        """As `disk.WatchedCommand` has it."""

    def crowded(self, limits: Limits) -> str:
        """As `disk.WatchedCommand` has it; without walls there is no such place."""
        return ""

    @abstractmethod
    async def kill(self) -> None:
        """SIGKILL to all that is left, and wait until it is gone. Also when nothing was started, or all has ended."""


def all_processes() -> Iterator[int]:
    """The ids of all processes of this machine that this process sees."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)
