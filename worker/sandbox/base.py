"""The sandbox port: where foreign code runs.

What runs here is hostile by default. A sandbox gets a folder, runs one command in it, passes its output on as it comes,
and leaves the folder as the command left it. It gets no credential, no network and no environment but what is named.
It does not know runs, steps, or where the folder's files come from and go to: that is `worker.checkout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """`wall_seconds` ends the command; `memory_bytes` and `cpu_seconds` hold for each process (or all, where the
    sandbox can), `file_bytes` for each file, `disk_bytes` and `files` for the folder as a whole."""

    wall_seconds: float
    memory_bytes: int
    cpu_seconds: int
    processes: int
    file_bytes: int
    disk_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Command:
    """`argv[0]` is looked up in the sandbox's own PATH; `stdin` is given whole, then closed."""

    argv: tuple[str, ...]
    limits: Limits
    stdin: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)


class Ending(StrEnum):
    EXITED = "exited"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`exit_code` is 128 + n where signal n ended the command, as a shell has it. `detail` is for people."""

    exit_code: int
    ending: Ending
    duration_seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a sandbox keeps apart. `isolated`: nothing that the command does can last outside its folder, so a
    command that was cut off before its files were taken over can be run again. `missing`: what to install or set."""

    name: str
    isolated: bool
    missing: str = ""


OutputSink = Callable[[bytes], None]
"""Takes output as it comes (standard output and error, merged in the order written). Returns at once."""


class Sandbox(ABC):
    isolation: Isolation

    @abstractmethod
    async def run(self, command: Command, folder: Path, output: OutputSink) -> Outcome:
        """Run the command in `folder` (seen as /workspace where isolated) and wait for its end.

        Cancelling this call kills the whole process tree before it raises CancelledError. Raises Unavailable when no
        sandbox can be started; a command that fails is an Outcome, not an error.
        """

    @abstractmethod
    async def close(self) -> None: ...
