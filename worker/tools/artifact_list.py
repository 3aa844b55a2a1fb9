"""List the files that the agent keeps."""

from backplane.artifacts.base import AgentId, Artifacts
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult


class ArtifactListArguments(ToolArguments):
    pass


class ArtifactList(Tool):
    name = "artifact_list"
    description = "Print size in bytes and path of every file that this agent keeps from run to run."
    arguments = ArtifactListArguments
    repeatable = True
    read_only = True

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def run(self, arguments: ArtifactListArguments, context: ToolContext) -> ToolResult:
        files = await self._artifacts.files(AgentId(context.call.user_id, context.agent))
        for file in files:
            context.output(f"{file.size:>14,}  {file.path}\n".encode())
        context.output(f"{len(files):,} {'artifact' if len(files) == 1 else 'artifacts'}\n".encode())
        return ToolResult()
