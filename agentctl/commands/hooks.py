"""The commands about hooks: hooks create, list, delete."""

from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.address import find_url
from agentctl.api.api_error import JsonObject
from agentctl.calls import call
from agentctl.commands.secrets import value_of
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, short_time

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and hyphens, as github.")]

app = typer.Typer(
    cls=Group,
    help="Make addresses that others post to; what they post, signed, becomes an event.",
    no_args_is_help=True,
)


@app.command()
def create(
    name: NameArgument,
    kind: Annotated[
        str,
        typer.Option(metavar="standard|github", help="How messages are signed: Standard Webhooks, or as GitHub."),
    ] = "standard",
    type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The type of the events; else hook. and the name.")
    ] = None,
    secret_from_file: Annotated[
        Path | None, typer.Option(help="The sender's own secret is in this file; else one is made and shown once.")
    ] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new secret for a hook that is there.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Make a hook, or change the one of this name, which keeps its address."""
    output = Output(json_output)
    hook: JsonObject = {"kind": kind, "rotate": rotate}
    if type is not None:
        hook["type"] = type
    if secret_from_file is not None:
        hook["secret"] = value_of(secret_from_file)
    made = call(output, lambda client: client.put_hook(name, hook))
    made["url"] = find_url().rstrip("/") + made["path"]
    if output.json:
        output.document(made)
        return
    output.line(f"{made['name']} gives events of the type {made['type']}. Let the sender post to:")
    output.line(made["url"])
    if made["secret"]:
        output.line("Let it sign with this secret, which is not shown again:")
        output.line(made["secret"])


@app.command("list")
def list_hooks(json_output: JsonFlag = False) -> None:
    """List the hooks, without their secrets."""
    output = Output(json_output)
    found = call(output, lambda client: client.hooks())
    if output.json:
        output.document(found)
        return
    rows = [[hook["name"], hook["kind"], hook["type"], hook["path"], short_time(hook["updated_at"])] for hook in found]
    output.table(["NAME", "KIND", "TYPE", "PATH", "SET"], rows, folding=["TYPE", "PATH"])


@app.command()
def delete(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Delete a hook. What is posted to its address is not taken any more."""
    output = Output(json_output)
    call(output, lambda client: client.delete_hook(name))
    output.document({"deleted": name}) if output.json else output.line(f"{name} is deleted.")
