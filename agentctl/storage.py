"""What one has stored, and how to have less: usage, delete."""

from typing import Annotated

import typer

from agentctl.client import JsonObject
from agentctl.dead_letters import confirm
from agentctl.output import JsonFlag, Output
from agentctl.runs import call


def usage(json_output: JsonFlag = False) -> None:
    """Show how much of runs, events and files you have stored, and how much you may."""
    output = Output(json_output)
    view = call(output, lambda client: client.usage())
    if output.json:
        output.document(view)
        return
    output.fields({"runs": _of(view["runs"]), "events": _of(view["events"]), "bytes of files": _of(view["bytes"])})


def delete(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs that are over.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete runs that are over, with their events and files, for good."""
    output = Output(json_output)
    if not yes:
        confirm(f"Delete {'the run' if len(run_ids) == 1 else f'{len(run_ids)} runs'} for good?")
    for run_id in run_ids:
        call(output, lambda client, run_id=run_id: client.delete(run_id))  # type: ignore[misc]
    if output.json:
        output.document({"deleted": run_ids})
    else:
        output.fields({"deleted": str(len(run_ids))})


def _of(one: JsonObject) -> str:
    used = "not counted yet" if one["used"] is None else f"{one['used']:,}"
    return f"{used} of {one['limit']:,}" if one["limit"] else f"{used}, without a limit"
