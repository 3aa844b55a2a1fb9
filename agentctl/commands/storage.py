"""How to have less stored: delete. What there is, is in `usage`."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from agentctl.api.client import Client
from agentctl.api.ids import whole_run_id
from agentctl.calls import call
from agentctl.completion import run_ids as run_ids_for_shells
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.terminal.output import JsonFlag, Output
from agentctl.terminal.prompts import confirm


def delete(
    run_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Ids of runs that are over, or how they begin.", autocompletion=run_ids_for_shells
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete runs that are over, with their events and files, for good. One that is refused does not stop the rest."""
    output = Output(json_output)
    if not yes:
        confirm(f"Delete {'the run' if len(run_ids) == 1 else f'{len(run_ids)} runs'} for good?")
    delete_each(output, run_ids, _delete_run, key="run_id")


async def _delete_run(client: Client, given: str) -> str:
    run_id = await whole_run_id(client, given)
    await client.delete(run_id)
    return run_id


def delete_each(
    output: Output, given: list[str], delete_one: Callable[[Client, str], Awaitable[str]], *, key: str
) -> None:
    """Delete all that are given, and print how many, and what each of the others was refused for. `delete_one` gives
    the whole id; `key` is its name in JSON."""
    deleted, refused = call(output, lambda client: _delete_each(client, list(dict.fromkeys(given)), delete_one))
    if output.json:
        refusals = [{key: one, "reason": error.message} for one, error in refused.items()]
        output.document({"deleted": deleted, "refused": refusals})
    else:
        for one, error in refused.items():
            output.note(f"{one}: {error.message}", "red")
        output.fields({"deleted": str(len(deleted)), "refused": str(len(refused) or "")})
    if refused:
        raise typer.Exit(max(error.exit_code for error in refused.values()))


async def _delete_each(
    client: Client, given: list[str], delete_one: Callable[[Client, str], Awaitable[str]]
) -> tuple[list[str], dict[str, CommandError]]:
    """Where the API is not reached for one, it is not asked for the rest."""
    deleted, refused = list[str](), dict[str, CommandError]()
    for one in given:
        try:
            deleted.append(await delete_one(client, one))
        except CommandError as error:
            refused[one] = error
            if error.exit_code is ExitCode.UNREACHABLE:
                break
    return deleted, refused
