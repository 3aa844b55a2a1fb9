"""What all tools share that run a command: files down, command, files up.

A command that failed leaves the workspace as it was: its changes stay in the checkout, where the next `pull` undoes
them. So a step that is tried again, or a run that is, starts from what the last step that succeeded had left.
"""

from collections.abc import Mapping

from backplane.runs import RunError
from worker.sandbox.base import Command, Ending, Outcome
from worker.tools.base import ToolContext, ToolResult

_CODES = {
    Ending.EXITED: "command_failed",
    Ending.TIMEOUT: "step_timeout",
    Ending.MEMORY: "out_of_memory",
    Ending.DISK: "disk_quota_exceeded",
}
_WHAT_TO_DO = {
    Ending.EXITED: "its output says why",
    Ending.TIMEOUT: "let it do less, or give the step a longer timeout_seconds",
    Ending.MEMORY: "let it hold less in memory at once",
    Ending.DISK: "let it leave less in the workspace",
}


async def run_in_sandbox(argv: tuple[str, ...], environment: Mapping[str, str], context: ToolContext) -> ToolResult:
    """Run the command over the run's files, and keep what it changed when it succeeds."""
    await context.checkout.pull()
    command = Command(argv, context.limits, context.call, environment=environment)
    outcome = await context.sandbox.run(command, context.checkout.folder, context.output, context.notice)
    if outcome.exit_code != 0 or outcome.ending is not Ending.EXITED:
        return ToolResult(outcome.exit_code, error=_error(outcome))
    changes = await context.checkout.changes()
    if not changes:
        return ToolResult()
    await context.about_to_change()
    return ToolResult(files_changed=await context.checkout.push(changes))


def _error(outcome: Outcome) -> RunError:
    why = f" ({outcome.detail})" if outcome.detail else ""
    verb = "ended with" if outcome.ending is Ending.EXITED else "was ended with"
    advice = f"{_WHAT_TO_DO[outcome.ending]}; its changes to files were not kept"
    return RunError(_CODES[outcome.ending], f"the command {verb} exit code {outcome.exit_code}{why}: {advice}")
