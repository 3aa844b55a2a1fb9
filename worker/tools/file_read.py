"""Read a file, or a part of it, into the step's output."""

from pydantic import Field

from worker.tools.arguments import WorkspacePath
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult

MAX_READ_BYTES = 1024**2


class FileReadArguments(ToolArguments):
    path: WorkspacePath
    start: int = Field(0, ge=0)
    max_bytes: int = Field(64 * 1024, ge=1, le=MAX_READ_BYTES)


class FileRead(Tool):
    name = "file_read"
    description = "Print a file as text, from byte `start`, at most `max_bytes` of it."
    arguments = FileReadArguments
    repeatable = True
    read_only = True

    async def run(self, arguments: FileReadArguments, context: ToolContext) -> ToolResult:
        file = await context.workspace.stat(arguments.path)
        end = min(arguments.start + arguments.max_bytes, file.size)
        last = b"\n"
        if arguments.start < end:
            async for chunk in context.workspace.read(arguments.path, start=arguments.start, end=end):
                context.output(chunk)
                last = chunk[-1:] or last
        if end < file.size:
            line_break = "" if last == b"\n" else "\n"
            context.output(f"{line_break}… {file.size - end:,} more bytes; read on with start={end}\n".encode())
        return ToolResult()
