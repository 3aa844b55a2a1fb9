"""The sandbox port: where foreign code runs.

What runs here is hostile by default. A sandbox gets a folder, runs one command in it, passes its output on as it comes,
and leaves the folder as a command that succeeded left it. It gets no credential, no network and no environment but what
is named. It does not know where the folder's files come from and go to: `worker.files.checkout` does.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from backplane.errors import InvalidInput, PlatformError


@dataclass(frozen=True, slots=True)
class Limits:
    """`wall_seconds` ends the command; `memory_bytes` and `cpu_seconds` hold for each process (or all, where the
    sandbox can), `cpus` (processors, may be a fraction) where it can, `file_bytes` for each file, `disk_bytes` and
    `files` for the folder as a whole."""

    wall_seconds: float
    memory_bytes: int
    cpus: float
    cpu_seconds: int
    processes: int
    file_bytes: int
    disk_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Call:
    """Which try of which step a command is. A sandbox that outlives its worker is found again by this, so two equal
    calls are one; what runs of different users or runs share nothing."""

    user_id: str
    run_id: str
    step_id: str
    generation: int
    tries: int


class EgressWriter(Protocol):
    """The part of an `asyncio.StreamWriter` that a way out needs."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...


Egress = Callable[[asyncio.StreamReader, EgressWriter], Awaitable[None]]
"""Answers one connection that a command has made to its way out, to the end; closes the writer."""

EGRESS_VARIABLE = "SANDBOX_EGRESS"
"""The environment variable, inside, with the path of the Unix socket that leads to the command's `egress`."""


EVERYWHERE = {"LANG": "C.UTF-8", "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"}
"""Variables that every command has, unless it is given others. Python's bytecode belongs to one size and second of a
source, so a program that was mended within the second would run as it was before."""

UMASK = 0o022
"""The umask of every command, whatever the worker's own is: files have the same modes wherever a step is carried
out."""


@dataclass(frozen=True, slots=True)
class Command:
    """`argv[0]` is looked up in the sandbox's own PATH; `stdin` is given whole, then closed. `egress`: the only way out
    that it has, where a tool gives it one; what goes through it is the tool's to judge. Raises InvalidInput for text
    that no encoding takes."""

    argv: tuple[str, ...]
    limits: Limits
    call: Call
    stdin: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)
    egress: Egress | None = None

    def __post_init__(self) -> None:
        try:
            for text in (*self.argv, *self.environment, *self.environment.values()):
                text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"the command, or a variable of it, is not valid Unicode ({error.reason}): write it in UTF-8"
            ) from None


class Ending(StrEnum):
    EXITED = "exited"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`exit_code` is 128 + n where signal n ended the command, as a shell has it. `detail` is for people; so are the
    lines of `not_kept`, on what the command left in the folder and only the sandbox can see."""

    exit_code: int
    ending: Ending
    duration_seconds: float
    detail: str = ""
    not_kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a sandbox keeps apart. `isolated`: nothing that the command does can last outside its folder, so a
    command that was cut off before its files were taken over can be run again. `missing`: what to install or set.
    `filtered`: the kernel refuses the command what namespaces do not divide."""

    name: str
    isolated: bool
    missing: str = ""
    filtered: bool = True


class SandboxError(PlatformError):
    """No command ran, or its end is not known, for a reason that lies with the sandbox's machine or its settings.

    Unlike Unavailable it is final for this try of the step; `retryable` says whether a later attempt of the run may
    pass.
    """

    code: ClassVar[str] = "sandbox_error"
    retryable: ClassVar[bool] = True


class SandboxEvicted(SandboxError):
    code = "sandbox_evicted"


class SandboxUnschedulable(SandboxError):
    code = "sandbox_unschedulable"


class SandboxQuotaExceeded(SandboxError):
    code = "sandbox_quota_exceeded"


class SandboxRefused(SandboxError):
    """A sandbox with these settings can never start here."""

    code = "sandbox_refused"
    retryable = False


class SandboxImageNotFound(SandboxRefused):
    code = "sandbox_image_not_found"


OutputSink = Callable[[bytes], None]
"""Takes output as it comes (standard output and error, merged in the order written). Returns at once."""

NoticeSink = Callable[[str], None]
"""Takes a line for people on why nothing happens yet: no place for the sandbox, a connection that was lost."""


class Sandbox(ABC):
    isolation: Isolation

    @abstractmethod
    async def run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        """Run the command in `folder` (seen as /workspace where isolated) and wait for its end.

        After exit code 0 the folder is as the command left it; after anything else it may be in any state. Cancelling
        this call kills the whole process tree before it raises CancelledError. Raises Unavailable when the sandbox
        cannot be reached: the same call may be made again, and goes on with the command where it still runs. Raises
        SandboxError when no sandbox can be had; a command that fails is an Outcome, not an error.
        """

    async def release(self, run_id: str) -> None:  # noqa: B027 - most keep nothing
        """This worker no longer has the run: remove what was kept for its next command. By default nothing is kept."""

    def detach(self) -> None:  # noqa: B027 - most cannot
        """The worker is about to end: a command that is interrupted from now on may go on, for the next worker that
        carries out the run."""

    @abstractmethod
    async def close(self) -> None: ...
