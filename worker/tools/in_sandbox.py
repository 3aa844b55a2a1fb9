"""What all tools share that run a command: fetch the files, run the command, store the changes.

A command that failed leaves the workspace as it was: its changes stay in the checkout, where the next `pull` undoes
them. So a step that is tried again, or a run that is, starts from what the last step that succeeded had left.

Secrets are put into the variables here, at the sandbox's edge: no sandbox has them in a command line that others see.
"""

from collections.abc import Mapping

from backplane.domain.runs import RunError
from backplane.errors import InvalidInput
from worker.sandbox.base import Command, Ending, Outcome
from worker.tools.base import ToolContext, ToolResult

MAX_FILLED_ENVIRONMENT_BYTES = 128 * 1024
"""The most bytes of the environment with the secrets in it."""

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
    """Run the command over the run's files, and keep what it changed when it succeeds. `environment` may have
    `${secrets.NAME}` in its values."""
    variables = await _filled(environment, context)
    return await run_command(Command(argv, context.limits, context.call, environment=variables), context)


async def run_command(command: Command, context: ToolContext) -> ToolResult:
    """Run a command whose secrets are filled in already."""
    await context.checkout.pull()
    outcome = await context.sandbox.run(command, context.checkout.folder, context.output, context.notice)
    if outcome.exit_code != 0 or outcome.ending is not Ending.EXITED:
        return ToolResult(outcome.exit_code, error=_error(outcome))
    return ToolResult(files_changed=await keep_changes(outcome, context))


async def keep_changes(outcome: Outcome, context: ToolContext) -> tuple[str, ...]:
    """Bring what a command that succeeded did to the files into the workspace, and say what of it is not kept; the
    paths of the files that changed."""
    changes = await context.checkout.changes()
    for line in (*outcome.not_kept, *changes.not_kept):
        context.notice(line)
    if changes:
        await context.about_to_change()
    # Times, modes, folders and links are written with the step's end: nothing reaches the workspace for them.
    return await context.checkout.push(changes) if changes or changes.attributes else ()


async def _filled(environment: Mapping[str, str], context: ToolContext) -> dict[str, str]:
    variables = {name: await context.secrets.fill(value) for name, value in environment.items()}
    if (
        sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
        > MAX_FILLED_ENVIRONMENT_BYTES
    ):
        raise InvalidInput(
            f"the environment is larger than {MAX_FILLED_ENVIRONMENT_BYTES:,} bytes with its secrets: give the step "
            "fewer of them",
            field="environment",
        )
    return variables


def _error(outcome: Outcome) -> RunError:
    why = f" ({outcome.detail})" if outcome.detail else ""
    verb = "ended with" if outcome.ending is Ending.EXITED else "was ended with"
    advice = f"{_WHAT_TO_DO[outcome.ending]}; its changes to files were not kept"
    return RunError(_CODES[outcome.ending], f"the command {verb} exit code {outcome.exit_code}{why}: {advice}")
