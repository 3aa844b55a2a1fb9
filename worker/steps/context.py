"""What the steps of one run work with: the run's parts, put together by `worker.run_work` for `worker.steps.runner`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backplane.input.parsing import Parser
from backplane.workspace.attributes import AttributeRecord
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.files.checkouts import Checkouts
from worker.llm.base import Models
from worker.metrics import WorkerMetrics
from worker.run.budget import Budget
from worker.run.redaction import Redactor
from worker.run.secrets import RunSecrets
from worker.sandbox.base import Limits, Sandbox
from worker.steps.approval import ApprovalPolicy
from worker.steps.output import OutputLimits
from worker.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class StepTools:
    """Of one run. `limits` hold for steps that name none of their own, up to the most.
    `take_changes`, `take_attributes`: what changed in the workspace since it was last asked. `disabled`: tools that no
    step may use. `shows_only`: the tools have the results of another run and carry nothing out."""

    user_id: str
    run_id: str
    agent: str
    generation: int
    tools: ToolRegistry
    disabled: frozenset[str]
    approval: ApprovalPolicy
    budget: Budget
    models: Models | None
    redactor: Redactor
    secrets: RunSecrets
    workspace: Workspace
    attributes: AttributeRecord
    take_changes: Callable[[Mapping[str, str | None] | None], dict[str, str | None] | None]
    take_attributes: Callable[[Mapping[str, Any] | None], dict[str, Any] | None]
    checkouts: Checkouts
    sandbox: Sandbox
    quota: Quota
    limits: Limits
    most_memory_bytes: int
    most_cpus: float
    output: OutputLimits
    metrics: WorkerMetrics
    parser: Parser
    shows_only: bool = False
