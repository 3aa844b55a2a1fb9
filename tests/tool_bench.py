"""What a tool needs to be carried out by a test, without a run around it: files, a sandbox, and a listener."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backplane.input.parsing import Parser
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.quota import Quota
from tests.tool_context import FieldContext
from worker.files.checkout import Checkout
from worker.files.scratch import remove_folder
from worker.sandbox.base import Call, Limits, Sandbox
from worker.steps.sub_steps import NoSubSteps
from worker.tools.base import Secrets, ToolResult
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
    """`said`: the output of the last step. `changing`: how often it said that changes begin."""

    context: FieldContext
    said: bytearray
    changing: list[str]
    notices: list[str]
    tools: ToolRegistry = field(default_factory=builtin_tools)

    async def step(self, tool: str, **arguments: Any) -> ToolResult:
        self.said.clear()
        self.changing.clear()
        found, valid = self.tools.resolve(tool, arguments, field="plan.steps.0")
        return await found.run(valid, self.context)

    def but(self, **values: Any) -> "Bench":
        """The same with these values in its context."""
        return replace(self, context=replace(self.context, **values))

    async def files(self) -> dict[str, bytes]:
        workspace = self.context.workspace
        return {
            file.path: b"".join([chunk async for chunk in workspace.read(file.path)]) for file in await workspace.list()
        }


class NoSecrets:
    async def fill(self, text: str, *, host: str | None = None) -> str:
        return text


class OneSecret:
    """`${secrets.NAME}`, whatever the name is. Notes for which hosts it was opened."""

    def __init__(self) -> None:
        self.hosts: list[str | None] = []

    async def fill(self, text: str, *, host: str | None = None) -> str:
        self.hosts.append(host)
        return text.replace("${secrets.NAME}", "opened")


@asynccontextmanager
async def tool_bench(
    sandbox: Sandbox, folder: Path, secrets: Secrets, *, quota: Quota = QUOTA, limits: Limits = LIMITS
) -> AsyncIterator[Bench]:
    """With an empty workspace."""
    store = LocalWorkspaceStore(folder / "store")
    await store.prepare()
    workspace = store.workspace("user", "run")
    checkout = Checkout(workspace, quota, folder / "checkout")
    said, changing, notices = bytearray(), list[str](), list[str]()

    async def about_to_change() -> None:
        changing.append("now")

    context = FieldContext(
        call=Call("user", "run", "step", 1, 1),
        workspace=workspace,
        checkout=checkout,
        sandbox=sandbox,
        quota=quota,
        limits=limits,
        output=said.extend,
        notice=notices.append,
        about_to_change=about_to_change,
        sub_steps=NoSubSteps(),
        secrets=secrets,
        parser=Parser(),
    )
    yield Bench(context, said, changing, notices)
    remove_folder(checkout.base)
