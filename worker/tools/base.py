"""The tool port: one thing that a step can do.

A tool is one file: a name, a pydantic model of its arguments, and `run`. It works on the run's workspace directly
(files) or lets a command run in a sandbox over a checkout of it (shell, Python). It writes no event but its output,
touches no row, and does not retry: the supervisor does all that.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from backplane.domain.decisions import DecisionKind
from backplane.domain.plans import SubStep
from backplane.domain.runs import RunError
from backplane.input.parsing import Parser
from backplane.workspace.attributes import AttributeRecord
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.files.checkout import StepFiles
from worker.llm.base import Models
from worker.sandbox.base import Call, Limits, Sandbox


class ToolArguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Risk(IntEnum):
    """The worst that a step can do: LOW stays in the run's own files, MEDIUM runs foreign code in a sandbox, reads from
    outside or changes what later runs find, HIGH changes something outside."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


class Effect(StrEnum):
    """What a failed call has done outside, as far as its tool knows. `worker.steps.effects` decides by it."""

    NONE = "none"  # nothing: it may be tried again
    ANSWERED = "answered"  # the other side said that it failed, not how far it had come: not tried again by itself
    POSSIBLE = "possible"  # nobody knows: a person is asked
    CERTAIN = "certain"  # it happened, and what came after it failed: a person is asked


class NeedsPerson(Exception):
    """Raised by a tool whose step cannot go on without a person. The step is called again with the answer, and must
    have changed nothing before."""

    def __init__(self, kind: DecisionKind, asked: Mapping[str, Any]) -> None:
        super().__init__(kind.value)
        self.kind = kind
        self.asked = dict(asked)


class Secrets(Protocol):
    """The secrets of the run's user, as this tool may use them."""

    async def fill(self, text: str, *, host: str | None = None) -> str:
        """Replace each `${secrets.NAME}`. What is filled in is redacted from here on. Raises Forbidden when this tool
        or host may not have it, NotFound when there is none of this name."""
        ...


class SubSteps(Protocol):
    """Sub-steps, written to the journal like any step: one that was done before gives its result again."""

    async def run(self, step: SubStep) -> "StepReport":
        """The step's `parent` is the step that calls this, and its `round` is `ToolContext.round`: so another try does
        not find what was done below one that failed. A step that fails is a report, not an error; so is one whose tool
        or arguments are wrong. Several may run at once. Raises what ends or suspends the step above too: let it
        pass."""
        ...


class Tools(Protocol):
    """The tools of the run: a `ToolRegistry`."""

    def get(self, name: str) -> "Tool | None": ...

    def tools(self) -> Iterable["Tool"]: ...


@dataclass(frozen=True, slots=True)
class StepReport:
    """How a step ended. `output` is the text that its result keeps. `files_left_out`: how many files changed beside
    those that are named."""

    succeeded: bool
    output: str
    files_changed: tuple[str, ...] = ()
    error: RunError | None = None
    seconds: float = 0.0
    files_left_out: int = 0


class ToolContext(Protocol):
    """What one call of a tool may touch: the last link of the chain that begins with the worker's context
    (`worker.steps.context`)."""

    @property
    def call(self) -> Call:
        """Whose call this is: the user, the run, the step and its try."""

    @property
    def agent(self) -> str:
        """The name under which the run keeps memory and artifacts."""

    @property
    def workspace(self) -> Workspace:
        """The run's files."""

    @property
    def attributes(self) -> AttributeRecord | None:
        """The modes and times of the run's files; None where none are kept."""

    @property
    def checkout(self) -> StepFiles:
        """The files as a folder for commands. It is this step's while the call runs."""

    @property
    def sandbox(self) -> Sandbox: ...

    @property
    def quota(self) -> Quota:
        """Of the run's files."""

    @property
    def limits(self) -> Limits:
        """Of this call."""

    @property
    def parser(self) -> Parser:
        """Reads texts that others wrote, apart from the event loop. All runs of the worker share its bounds."""

    @property
    def models(self) -> Models | None:
        """None where no model is set."""

    @property
    def secrets(self) -> Secrets: ...

    @property
    def tools(self) -> Tools | None:
        """The tools that sub-steps may use."""

    @property
    def sub_steps(self) -> SubSteps: ...

    @property
    def answer(self) -> Mapping[str, Any] | None:
        """A person's answer to the step's NeedsPerson."""

    @property
    def round(self) -> int:
        """Counts the tries of the step that ended in failure, over all claims: 0 at first, and still 0 when a try was
        cut off and is made again. Steps below this one (`SubStep`) and its model calls (`CallKey`) name it."""

    def output(self, chunk: bytes, /) -> None:
        """Take a piece of the step's output, in bytes of UTF-8."""

    def notice(self, line: str, /) -> None:
        """Log a line for people on what is waited for."""

    def about_to_change(self) -> Awaitable[None]:
        """Await this once, before the first byte reaches the workspace. It writes to the journal that from here on the
        step may have changed something. Raises Superseded when another worker has the run."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`exit_code` 0 is success. `error` says why it is not, when there is more to say than the exit code. `output` is
    the text that the step's result keeps, where it is not what was written on the way. `effect` is what a failure has
    done outside; where it is left out, `worker.steps.effects.of_result` judges by the tool. `files_left_out`: how many
    files changed beside those that are named. `value` is a JSON value that the result keeps as it is: what an effect of
    a handler gave."""

    exit_code: int = 0
    files_changed: tuple[str, ...] = ()
    error: RunError | None = None
    output: str | None = None
    effect: Effect | None = None
    files_left_out: int = 0
    value: Any = None


class Tool(ABC):
    name: ClassVar[str]
    description: ClassVar[str]
    arguments: ClassVar[type[ToolArguments]]
    repeatable: ClassVar[bool] = False
    """True: the tool has the same effect twice as once (a file is written whole)."""
    read_only: ClassVar[bool] = False
    """True: it changes nothing anywhere, so an agent may have several carried out at once."""
    risk: ClassVar[Risk] = Risk.LOW
    changes_outside: ClassVar[bool | None] = None
    """Whether it may change something outside the platform. None: when its risk is HIGH."""
    announces_changes: ClassVar[bool] = False
    """True: it awaits `ToolContext.about_to_change` also before it changes anything outside, so a call that was cut off
    before that has done nothing."""
    delegates: ClassVar[bool] = False
    """True: the tool works by sub-steps. Its time is theirs and that of its model calls, so a budget of seconds does
    not count it again; what a failed try of it has done outside is what they have done."""
    package: str = ""
    """The installed package that a plug-in is from; empty for the platform's own tools. `worker.tools.plugins` sets
    it."""

    def is_repeatable(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the tool has the same effect twice as once with these arguments."""
        return self.repeatable

    def may_cost_usd(self, arguments: Any) -> float:
        """What a step with these arguments may spend on models, in dollars; a person may have to approve it first."""
        return 0.0

    @abstractmethod
    async def run(self, arguments: Any, context: ToolContext) -> ToolResult:
        """Carry it out with arguments of this tool's model. A PlatformError becomes the step's error; but where a part
        of the platform is Unavailable (PLATFORM_PARTS), the step waits for it."""
