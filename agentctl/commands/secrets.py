"""The commands about secrets: secrets set, list, delete, new-key. A value is never an argument: those are seen by every
user of the machine, and kept by the shell."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, short_time
from agentctl.terminal.prompts import ask_without_echo
from backplane.sealing import new_key as make_key

MAX_READ_BYTES = 1024 * 1024

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Capital letters, digits and _, as GITHUB_TOKEN.")]

app = typer.Typer(
    cls=Group, help="Keep named values that steps may use without anybody seeing them.", no_args_is_help=True
)


@app.command("set")
def set_secret(
    name: NameArgument,
    from_file: Annotated[
        Path | None, typer.Option(help="Read the value from this file; else from standard input, or asked for.")
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(help="A tool that may use it; may be given often. Else shell, python and http_fetch."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A host that it may be sent to, as api.example.org; may be given often. Else none."),
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Keep a secret, in place of one of the same name. A line break at its end is left out."""
    output = Output(json_output)
    body: JsonObject = {"value": value_of(from_file), "hosts": host or []}
    if tool:
        body["tools"] = tool
    kept = call(output, lambda client: client.put_secret(name, body))
    if output.json:
        output.document(kept)
        return
    hosts = ", ".join(kept["hosts"]) or "no host"
    output.line(f"{kept['name']} is kept, for {', '.join(kept['tools'])}, to be sent to {hosts}.")


@app.command("list")
def list_secrets(json_output: JsonFlag = False) -> None:
    """List the secrets, without their values."""
    output = Output(json_output)
    found = call(output, lambda client: client.secrets())
    if output.json:
        output.document(found)
        return
    rows = [
        [secret["name"], ", ".join(secret["tools"]), ", ".join(secret["hosts"]), short_time(secret["updated_at"])]
        for secret in found
    ]
    output.table(["NAME", "TOOLS", "HOSTS", "SET"], rows, folding=["TOOLS", "HOSTS"])


@app.command()
def delete(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Forget a secret."""
    output = Output(json_output)
    call(output, lambda client: client.delete_secret(name))
    output.document({"deleted": name}) if output.json else output.line(f"{name} is forgotten.")


@app.command("new-key")
def new_key(json_output: JsonFlag = False) -> None:
    """Print a new SECRETS_KEY, with which a platform seals its users' secrets. The API and the workers need the same;
    to change it, put the new one before the old one, with a comma in between."""
    output, key = Output(json_output), make_key()
    output.document({"key": key}) if output.json else output.line(key)


def value_of(file: Path | None) -> str:
    """What is in this file; else on standard input, or asked for. Raises CommandError."""
    if file is None and sys.stdin.isatty():
        return ask_without_echo("Value (not shown): ")
    try:
        if file is None:
            data = sys.stdin.buffer.read(MAX_READ_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(MAX_READ_BYTES + 1)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"The value cannot be read: {error.strerror}: {file}.") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError(ExitCode.USAGE, "The value is no text in UTF-8; encode it in base64 first.") from None
    if len(data) > MAX_READ_BYTES:
        raise CommandError(ExitCode.USAGE, "The value is over 1 MiB; a secret is a password or a key.")
    return text.removesuffix("\n").removesuffix("\r")
