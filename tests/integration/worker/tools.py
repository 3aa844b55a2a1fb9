"""Tools that do what a test needs and no real tool does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest

from worker.tools import toolbox
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.registry import ToolRegistry
from worker.tools.shell import Shell


class NoArguments(ToolArguments):
    pass


class Scripted(Tool):
    """Does what `act` says, with the number of the call, from 1. Not safe to repeat."""

    name: ClassVar[str] = "scripted"
    description: ClassVar[str] = "Does what a test says."
    arguments: ClassVar[type[ToolArguments]] = NoArguments

    def __init__(self, act: Callable[[int, ToolContext], Awaitable[ToolResult]]) -> None:
        self._act = act
        self.calls = 0

    async def run(self, arguments: NoArguments, context: ToolContext) -> ToolResult:
        self.calls += 1
        return await self._act(self.calls, context)


class BlockingTool(Tool):
    """Blocks its step until `go` is set, and counts how many steps are blocked at once."""

    name: ClassVar[str] = "hold"
    description: ClassVar[str] = "Waits for the test."
    arguments: ClassVar[type[ToolArguments]] = NoArguments

    def __init__(self) -> None:
        self.blocked = 0
        self.most = 0
        self.go = asyncio.Event()

    async def run(self, arguments: NoArguments, context: ToolContext) -> ToolResult:
        self.blocked += 1
        self.most = max(self.most, self.blocked)
        try:
            await self.go.wait()
        finally:
            self.blocked -= 1
        return ToolResult()


def equip(monkeypatch: pytest.MonkeyPatch, *tools: Tool) -> None:
    """Workers that start in this process from now on have these tools, and the shell."""
    monkeypatch.setattr(toolbox, "builtin_tools", lambda: ToolRegistry((Shell(), *tools)))
