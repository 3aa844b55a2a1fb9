"""`agentctl audit`: who did what, as the API has written it down."""

from typing import Annotated

import typer

from agentctl.calls import listed
from agentctl.terminal.output import JsonFlag, Output, local_time


def audit(
    user: Annotated[str | None, typer.Option(help="For administrators: only what this user did.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, as `decide` or `token.create`.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    json_output: JsonFlag = False,
) -> None:
    """Show who did what, the newest first: what you did, and for administrators what everybody did."""
    output = Output(json_output)
    found = listed(
        output,
        lambda client, cursor, most: client.audit_entries(cursor, most, user=user, action=action),
        "entries",
        limit,
    )
    if output.json:
        output.document(found)
        return
    columns = ["NUMBER", "AT", "USER", "ACTION", "TARGET", "DETAILS", "OUTCOME"]
    rows = [
        [
            str(entry["seq"]),
            local_time(entry["at"]),
            entry["user"],
            entry["action"],
            entry["target"],
            " ".join(f"{name}={value}" for name, value in entry["details"].items()),
            entry["outcome"],
        ]
        for entry in found
    ]
    output.table(columns, rows, cutting=["TARGET", "DETAILS"])
