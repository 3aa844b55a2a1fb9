"""List the run's files."""

from pydantic import Field

from worker.tools.arguments import WorkspaceFolder
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult


class FileListArguments(ToolArguments):
    prefix: WorkspaceFolder | None = Field(None, description="A folder; all files when left out, or with `.`.")


class FileListTool(Tool):
    name = "file_list"
    description = "Print size in bytes and path of every file, or of those in one folder."
    arguments = FileListArguments
    repeatable = True
    read_only = True

    async def run(self, arguments: FileListArguments, context: ToolContext) -> ToolResult:
        files = await context.workspace.list(arguments.prefix or "")
        for file in files:
            context.output(f"{file.size:>14,}  {file.path}\n".encode())
        context.output(f"{len(files):,} {'file' if len(files) == 1 else 'files'}\n".encode())
        return ToolResult()
