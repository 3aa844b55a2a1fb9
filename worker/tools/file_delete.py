"""Delete a file."""

from backplane.errors import NotFound
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult


class FileDeleteArguments(ToolArguments):
    path: WorkspacePath


class FileDelete(Tool):
    name = "file_delete"
    description = "Delete a file. One that is not there is no error, so that the step can be repeated."
    arguments = FileDeleteArguments
    repeatable = True

    async def run(self, arguments: FileDeleteArguments, context: ToolContext) -> ToolResult:
        await context.about_to_change()
        try:
            await context.workspace.delete(arguments.path)
        except NotFound:
            context.output(f"there was no {arguments.path}\n".encode())
            return ToolResult()
        context.output(f"deleted {arguments.path}\n".encode())
        return ToolResult(files_changed=(arguments.path,))
