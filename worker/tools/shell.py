"""Run a shell script over the run's files."""

from pydantic import Field

from worker.tools.arguments import Environment, Program
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.in_sandbox import run_in_sandbox

# As CI systems do: the first command that fails ends the script, also inside a pipe.
_FIND_A_SHELL = """
if command -v bash > /dev/null; then exec bash -eo pipefail -c "$1"; fi
exec sh -e -c "$1"
"""


class ShellArguments(ToolArguments):
    script: Program
    environment: Environment = Field({})


class Shell(Tool):
    name = "shell"
    description = "Run a script with bash -eo pipefail (sh -e where there is no bash) in the run's files."
    arguments = ShellArguments
    risk = Risk.MEDIUM

    async def run(self, arguments: ShellArguments, context: ToolContext) -> ToolResult:
        argv = ("sh", "-c", _FIND_A_SHELL, "sh", _with_line_feeds(arguments.script))
        return await run_in_sandbox(argv, arguments.environment, context)


def _with_line_feeds(script: str) -> str:
    """A script whose every line ends with CR LF comes from another system; a shell takes the CR for a part of the
    command."""
    return script.replace("\r\n", "\n") if script.count("\n") == script.count("\r\n") else script
