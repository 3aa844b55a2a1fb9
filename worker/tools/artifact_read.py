"""Read a file that the agent keeps: into the step's output, or into a file of the run."""

from collections.abc import AsyncIterator

from pydantic import Field

from backplane.artifacts.base import AgentId, Artifacts
from backplane.workspace.quota import ensure_room
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.file_read import MAX_READ_BYTES


class ArtifactReadArguments(ToolArguments):
    path: WorkspacePath
    start: int = Field(0, ge=0)
    max_bytes: int = Field(64 * 1024, ge=1, le=MAX_READ_BYTES)
    to_file: WorkspacePath | None = Field(None, description="A file of the run, to which all of it is copied instead.")


class ArtifactRead(Tool):
    name = "artifact_read"
    description = (
        "Print a file that this agent keeps as text, from byte `start`, at most `max_bytes` of it; or copy it into a "
        "file of the run."
    )
    arguments = ArtifactReadArguments
    repeatable = True

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def run(self, arguments: ArtifactReadArguments, context: ToolContext) -> ToolResult:
        data = await self._artifacts.read(AgentId(context.call.user_id, context.agent), arguments.path)
        if arguments.to_file is not None:
            await ensure_room(context.workspace, context.quota, arguments.to_file, len(data))
            await context.about_to_change()
            await context.workspace.write(arguments.to_file, _chunks(data))
            context.output(f"wrote {len(data):,} bytes to {arguments.to_file}\n".encode())
            return ToolResult(files_changed=(arguments.to_file,))
        end = min(arguments.start + arguments.max_bytes, len(data))
        shown = data[arguments.start : end]
        context.output(shown)
        if end < len(data):
            line_break = "" if shown.endswith(b"\n") else "\n"
            context.output(f"{line_break}… {len(data) - end:,} more bytes; read on with start={end}\n".encode())
        return ToolResult()


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
