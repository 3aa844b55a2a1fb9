"""Count what a text file of the run holds."""

from pydantic import Field

from backplane.errors import InvalidInput, TooLarge
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult

MAX_BYTES = 10 * 1024**2


class WordCountArguments(ToolArguments):
    path: WorkspacePath
    least: int = Field(0, ge=0, description="Fail when the file has fewer words.")


class WordCount(Tool):
    name = "word_count"
    description = "Count the lines, words and characters of a text file of the run."
    arguments = WordCountArguments
    repeatable = True
    read_only = True
    risk = Risk.LOW

    async def run(self, arguments: WordCountArguments, context: ToolContext) -> ToolResult:
        size = (await context.workspace.stat(arguments.path)).size
        if size > MAX_BYTES:
            raise TooLarge(f"{arguments.path} has {size:,} bytes; word_count takes at most {MAX_BYTES:,}")
        data = b"".join([chunk async for chunk in context.workspace.read(arguments.path)])
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"{arguments.path} is no UTF-8 text", field="path") from None
        words = len(text.split())
        context.output(f"{len(text.splitlines()):,} lines, {words:,} words, {len(text):,} characters\n".encode())
        return ToolResult(exit_code=0 if words >= arguments.least else 1)
