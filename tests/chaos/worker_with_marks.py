"""`python -m worker`, with one tool more: `mark`, whose every call leaves a line in a file outside (see `marks`).

CHAOS_MARKS names that file. CHAOS_MARK_TWICE names a step that secretly does its work twice: what the checker must
find.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import ClassVar

from tests.chaos import marks
from worker.__main__ import main
from worker.tools import toolbox
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.file_write import FileWrite
from worker.tools.registry import ToolRegistry
from worker.tools.shell import Shell

FRESH_SECONDS = 0.5
"""So old may the database's word be, that the run is this worker's, when the mark is made."""


class MarkArguments(ToolArguments):
    run: str
    step: str
    seconds: float = 0.0
    """Before the mark, and once more after it."""
    lines: int = 0


class MarkTool(Tool):
    """Not safe to repeat: after a crash in the middle somebody has to look whether the mark is there."""

    name: ClassVar[str] = "mark"
    description: ClassVar[str] = "Leaves a mark outside of the platform."
    arguments: ClassVar[type[ToolArguments]] = MarkArguments

    def __init__(self, path: Path, twice: str) -> None:
        self._path = path
        self._twice = twice

    async def run(self, arguments: MarkArguments, context: ToolContext) -> ToolResult:
        for number in range(arguments.lines):
            context.output(f"{arguments.step} line {number}\n".encode())
        await asyncio.sleep(arguments.seconds)
        asked = -FRESH_SECONDS
        # A process may be stopped between the question and the deed, for longer than its lease.
        while time.monotonic() - asked >= FRESH_SECONDS:
            asked = time.monotonic()
            await context.about_to_change()
        for _ in range(2 if arguments.step == self._twice else 1):
            marks.append(self._path, arguments.run, arguments.step, _generation(context))
        await asyncio.sleep(arguments.seconds)
        context.output(f"{arguments.step} done\n".encode())
        return ToolResult()


def _generation(context: ToolContext) -> int:
    """A run's checkout lies in a folder named by run and generation."""
    last = context.checkout.folder.parent.name.rsplit("-", 1)[-1]
    return int(last) if last.isdigit() else 0


if __name__ == "__main__":
    tool = MarkTool(Path(os.environ["CHAOS_MARKS"]), os.environ.get("CHAOS_MARK_TWICE", ""))
    toolbox.builtin_tools = lambda: ToolRegistry((Shell(), FileWrite(), tool))  # type: ignore[attr-defined]
    sys.exit(main())
