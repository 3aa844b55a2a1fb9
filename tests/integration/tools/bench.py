"""One run's workspace, and a way to carry a step out in it."""

from dataclasses import dataclass, field
from typing import Any

from backplane.plans import Step
from backplane.workspace.quota import Quota
from worker.sandbox.base import Limits
from worker.tools.base import StepReport, ToolContext, ToolResult
from worker.tools.registry import ToolRegistry, builtin_tools

MIB = 1024 * 1024
QUOTA = Quota(max_bytes=8 * MIB, max_files=100, max_depth=8)
LIMITS = Limits(
    wall_seconds=30,
    memory_bytes=256 * MIB,
    cpus=1,
    cpu_seconds=20,
    processes=32,
    file_bytes=64 * MIB,
    disk_bytes=QUOTA.max_bytes,
    files=QUOTA.max_files,
)


@dataclass
class Bench:
    context: ToolContext
    said: bytearray
    changing: list[str]
    tools: ToolRegistry = field(default_factory=builtin_tools)

    async def step(self, tool: str, **arguments: Any) -> ToolResult:
        self.said.clear()
        self.changing.clear()
        found, valid = self.tools.resolve(tool, arguments, field="plan.steps.0")
        return await found.run(valid, self.context)

    async def files(self) -> dict[str, bytes]:
        workspace = self.context.workspace
        return {
            file.path: b"".join([chunk async for chunk in workspace.read(file.path)]) for file in await workspace.list()
        }


class NoSubSteps:
    async def run(self, step: Step) -> StepReport:
        raise AssertionError("no tool here has steps below it")


class NoSecrets:
    async def fill(self, text: str, *, host: str | None = None) -> str:
        return text
