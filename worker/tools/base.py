"""The tool port: one thing that a step can do.

A tool is one file: a name, a pydantic model of its arguments, and `run`. It works on the run's workspace directly
(files) or lets a command run in a sandbox over a checkout of it (shell, Python). It writes no event but its output,
touches no row, and does not retry: the supervisor does all that.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from backplane.runs import RunError
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.checkout import Checkout
from worker.sandbox.base import Call, Limits, Sandbox


class ToolArguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may touch. `checkout` is the run's, shared by its steps on this worker.

    `about_to_change` must be awaited once, before the first byte reaches the workspace: it raises Superseded when the
    run is no longer this worker's, and it notes that from here on the step can no longer be taken as not having
    happened. `notice` takes a line for people on what is waited for.
    """

    call: Call
    workspace: Workspace
    checkout: Checkout
    sandbox: Sandbox
    quota: Quota
    limits: Limits
    output: Callable[[bytes], None]
    notice: Callable[[str], None]
    about_to_change: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`exit_code` 0 is success. `error` says why it is not, when there is more to say than the exit code."""

    exit_code: int = 0
    files_changed: tuple[str, ...] = ()
    error: RunError | None = None


class Tool(ABC):
    name: ClassVar[str]
    description: ClassVar[str]
    arguments: ClassVar[type[ToolArguments]]
    repeatable: ClassVar[bool] = False
    """True: carrying it out twice has the same effect as once (a file written whole)."""

    @abstractmethod
    async def run(self, arguments: Any, context: ToolContext) -> ToolResult:
        """Carry it out with arguments of this tool's model. Refused and Unavailable errors become the step's error."""
