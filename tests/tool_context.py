"""A `ToolContext` for tests that call a tool without a run around it: each part is a field, so that a test can replace
it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backplane.input.parsing import Parser
from backplane.workspace.attributes import AttributeRecord
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.files.checkout import StepFiles
from worker.llm.base import Models
from worker.sandbox.base import Call, Limits, Sandbox
from worker.tools.base import Secrets, SubSteps, Tools


@dataclass(frozen=True)
class FieldContext:
    call: Call
    workspace: Workspace
    checkout: StepFiles
    sandbox: Sandbox
    quota: Quota
    limits: Limits
    output: Callable[[bytes], None]
    notice: Callable[[str], None]
    about_to_change: Callable[[], Awaitable[None]]
    sub_steps: SubSteps
    secrets: Secrets
    parser: Parser
    agent: str = "default"
    models: Models | None = None
    answer: Mapping[str, Any] | None = None
    round: int = 0
    attributes: AttributeRecord | None = None
    tools: Tools | None = None
