"""Delete a file that the agent keeps."""

from backplane.artifacts.base import AgentId, Artifacts, Author
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult


class ArtifactDeleteArguments(ToolArguments):
    path: WorkspacePath


class ArtifactDelete(Tool):
    name = "artifact_delete"
    description = "Delete a file that this agent keeps. One that is not there is no error."
    arguments = ArtifactDeleteArguments
    repeatable = True
    risk = Risk.MEDIUM

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def run(self, arguments: ArtifactDeleteArguments, context: ToolContext) -> ToolResult:
        await context.about_to_change()
        agent = AgentId(context.call.user_id, context.agent)
        author = Author(run_id=context.call.run_id, step_id=context.call.step_id)
        if await self._artifacts.delete(agent, arguments.path, author):
            context.output(f"deleted {arguments.path}\n".encode())
        else:
            context.output(f"there was no {arguments.path}\n".encode())
        return ToolResult()
