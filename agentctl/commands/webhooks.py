"""The command about webhooks: webhook-secret."""

from typing import Annotated

import typer

from agentctl.calls import call
from agentctl.terminal.output import JsonFlag, Output, local_time


def webhook_secret(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; for a while, the one before signs too.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Show the secret that your webhooks are signed with."""
    output = Output(json_output)
    answer = call(output, lambda client: client.rotate_webhook_secret() if rotate else client.webhook_secret())
    if output.json:
        output.document(answer)
        return
    output.line(answer["secret"])
    if until := answer["previous_signs_until"]:
        output.note(f"The one before signs too until {local_time(until)}.")
