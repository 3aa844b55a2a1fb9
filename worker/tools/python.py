"""Run a Python program over the run's files."""

from pydantic import Field

from worker.tools.arguments import CommandArgument, Environment, Program
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.in_sandbox import run_in_sandbox


class PythonArguments(ToolArguments):
    code: Program
    args: list[CommandArgument] = Field([], max_length=100)
    environment: Environment = Field({})


class Python(Tool):
    name = "python"
    description = "Run Python code in the run's files, which it may import; sys.argv[1:] is `args`."
    arguments = PythonArguments
    risk = Risk.MEDIUM

    async def run(self, arguments: PythonArguments, context: ToolContext) -> ToolResult:
        # Unbuffered, so that output is seen as it is printed; without compiled files, which nobody wants to keep.
        argv = ("python3", "-u", "-B", "-c", arguments.code, *arguments.args)
        return await run_in_sandbox(argv, arguments.environment, context)
