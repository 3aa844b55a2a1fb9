"""What the steps of one run work with: a chain of three contexts, each of which refers to the one before.

    what a worker process has      `worker.context.WorkerContext`, of which steps see a `StepWorker`
    what a run has beside that     `RunContext`
    what one call of a tool has    `CallContext`, which tools see as a `worker.tools.base.ToolContext`

Nothing is copied from one link to the next: a part that is added to one can be used in all below it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from backplane.domain.budgets import RunBudget
from backplane.domain.runs import Run
from backplane.domain.stored import StorageQuota
from backplane.input.parsing import Parser
from backplane.workspace.attributes import AttributeRecord
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.files.checkouts import Checkouts, StepCheckout
from worker.files.retrying import RetryingWorkspace
from worker.files.scratch import Scratch
from worker.files.versioned import VersionedWorkspace
from worker.llm.base import Models
from worker.llm.gateway import ModelGateway
from worker.metrics import WorkerMetrics
from worker.run.budget import Budget
from worker.run.decisions import RunDecisions
from worker.run.events import RunEvents
from worker.run.interruption import Interruption
from worker.run.redaction import Redactor
from worker.run.secrets import RunSecrets
from worker.sandbox.base import Call, Limits, Sandbox
from worker.steps.approval import ApprovalPolicy
from worker.steps.output import OutputLimits
from worker.tools.base import Secrets, SubSteps
from worker.tools.registry import ToolRegistry

# --- the worker ---


@dataclass(frozen=True, slots=True)
class RunRules:
    """What an operator has set for runs. `budget`: of runs that name none. `replans`: how often a run may be planned
    anew. `crash_limit`: how many workers a run may lose. All times in seconds."""

    budget: RunBudget
    replans: int
    retry_base_seconds: float
    retry_max_seconds: float
    crash_limit: int
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class FileRules:
    """What an operator has set for files. `quota`: of one run; `user_quota`: of all runs of a user.
    `versions_max_bytes`: of what files were before, kept with a run. `refused_seconds`: how long a store may refuse
    what is asked of it."""

    quota: Quota
    user_quota: StorageQuota
    versions_max_bytes: int
    refused_seconds: float


@dataclass(frozen=True, slots=True)
class StepRules:
    """What an operator has set for steps. `limits`: of steps that name none of their own; a step may ask for
    `memory_max_bytes` and `cpus_max`. `disabled`: tools that no step may use. `concurrency`: steps of a run at once.
    `model_output_tokens`: of one answer that a handler asks for."""

    limits: Limits
    memory_max_bytes: int
    cpus_max: float
    output: OutputLimits
    approval: ApprovalPolicy
    disabled: frozenset[str]
    concurrency: int
    model_output_tokens: int


@dataclass(frozen=True, slots=True)
class WorkerRules:
    runs: RunRules
    files: FileRules
    steps: StepRules


@dataclass(frozen=True, slots=True)
class SharedParts:
    """What the steps of all runs of a process share."""

    sandbox: Sandbox
    scratch: Scratch
    parser: Parser
    gateway: ModelGateway
    tools: ToolRegistry


class StepWorker(Protocol):
    """What steps know of the worker's context."""

    @property
    def metrics(self) -> WorkerMetrics: ...

    @property
    def shared(self) -> SharedParts: ...

    @property
    def rules(self) -> WorkerRules: ...


# --- the run ---


@dataclass(frozen=True, slots=True)
class RunFiles:
    """`stored`: the files in the store, which waits while that is away. `workspace`: the same for steps, with what
    files were before. `checkouts`: copies on this machine, for commands."""

    stored: RetryingWorkspace
    workspace: VersionedWorkspace
    checkouts: Checkouts


@dataclass(frozen=True, slots=True)
class RunAccess:
    """What the run may spend, ask and use. `models` is None where no model is set."""

    budget: Budget
    models: Models | None
    secrets: RunSecrets


@dataclass(frozen=True, slots=True)
class RunContext:
    """`run`: as it was when this worker took it."""

    worker: StepWorker
    run: Run
    events: RunEvents
    interruption: Interruption
    decisions: RunDecisions
    files: RunFiles
    access: RunAccess

    @property
    def rules(self) -> WorkerRules:
        return self.worker.rules

    @property
    def shared(self) -> SharedParts:
        return self.worker.shared

    @property
    def redactor(self) -> Redactor:
        return self.events.redactor

    @property
    def is_isolated(self) -> bool:
        return self.worker.shared.sandbox.isolation.isolated

    @property
    def shows_only(self) -> bool:
        """Whether the run only shows what another one did: its tools have the results of that run and carry nothing
        out. A replay without this mark is of an older release, which carried out every step."""
        origin = self.run.origin or {}
        return origin.get("kind") == "replay" and not origin.get("execute", True)


# --- one call of a tool ---


class CallPort(Protocol):
    """What a call of a tool may ask of the code that carries out its step. `ToolContext` describes each method."""

    @property
    def sub_steps(self) -> SubSteps: ...

    @property
    def answer(self) -> Mapping[str, Any] | None: ...

    @property
    def round(self) -> int: ...

    def output(self, chunk: bytes, /) -> None: ...

    def notice(self, line: str, /) -> None: ...

    async def about_to_change(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CallContext:
    """A `worker.tools.base.ToolContext`. `port` leads to the step that the tool is called for."""

    run: RunContext
    call: Call
    checkout: StepCheckout
    limits: Limits
    secrets: Secrets
    tools: ToolRegistry | None
    port: CallPort

    @property
    def agent(self) -> str:
        return self.run.run.agent

    @property
    def workspace(self) -> Workspace:
        return self.run.files.workspace

    @property
    def attributes(self) -> AttributeRecord:
        return self.run.files.workspace.attributes

    @property
    def sandbox(self) -> Sandbox:
        return self.run.worker.shared.sandbox

    @property
    def quota(self) -> Quota:
        return self.run.worker.rules.files.quota

    @property
    def parser(self) -> Parser:
        return self.run.worker.shared.parser

    @property
    def models(self) -> Models | None:
        return self.run.access.models

    @property
    def sub_steps(self) -> SubSteps:
        return self.port.sub_steps

    @property
    def answer(self) -> Mapping[str, Any] | None:
        return self.port.answer

    @property
    def round(self) -> int:
        return self.port.round

    def output(self, chunk: bytes, /) -> None:
        self.port.output(chunk)

    def notice(self, line: str, /) -> None:
        self.port.notice(line)

    async def about_to_change(self) -> None:
        await self.port.about_to_change()
