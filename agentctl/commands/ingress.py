"""The commands about the public way in: ingress render, check."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.plan_file import value_of_file
from agentctl.services.declared import read_services
from agentctl.services.tunnel import faults, tunnel_config
from agentctl.terminal.output import JsonFlag, Output

HEADER = "# Written by `agentctl ingress render`, which replaces the rules; what else stands here is kept.\n"
RESTART = "The tunnel does not read a changed file: restart it (systemctl restart cloudflared)."

app = typer.Typer(
    cls=Group, help="The public way in: the tunnel's configuration, from the services.", no_args_is_help=True
)


@app.command()
def render(
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The tunnel's file; else it is printed.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file of services; else the API's.")] = None,
    tunnel: Annotated[str | None, typer.Option(metavar="ID", help="The tunnel's id or name.")] = None,
    credentials_file: Annotated[str | None, typer.Option(metavar="PATH", help="Where its credentials are.")] = None,
    access_team: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only people of this team of Access come in, at every rule.")
    ] = None,
    access_audience: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="The application of Access; may stand several times.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; answer 1 where the file is not as it would be.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the rules of a file that somebody wrote.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Write the tunnel's configuration from the services with a public endpoint, and say whether it must restart."""
    output = Output(json_output)
    if bool(access_team) != bool(access_audience):
        raise CommandError(ExitCode.USAGE, "--access-team and --access-audience go together.")
    if check and output_file is None:
        raise CommandError(ExitCode.USAGE, "--check compares with a file: name it with --output.")
    before = _present(output_file)
    base: dict[str, Any] = _kept(output_file, before, force=force)
    base |= {key: value for key, value in (("tunnel", tunnel), ("credentials-file", credentials_file)) if value}
    access = {"required": True, "teamName": access_team, "audTag": access_audience} if access_team else {}
    services = read_services(file) if file is not None else call(output, lambda client: client.services())
    config = tunnel_config(services, base, access)
    text = HEADER + yaml.safe_dump(config, sort_keys=False, width=1000)
    if output_file is None:
        if output.json:
            output.document(config)
            return
        for line in text.splitlines():
            output.line(line)
        return
    changed = text != before
    if changed and not check:
        _write(output_file, text)
    if output.json:
        output.document({"file": str(output_file), "changed": changed, "written": changed and not check})
    elif not changed:
        output.line(f"{output_file} is as it should be; the tunnel need not restart.")
    elif check:
        output.line(f"{output_file} is not as it should be.")
    else:
        output.line(f"{output_file} is written. {RESTART}")
    if changed and check:
        raise typer.Exit(ExitCode.RUN_FAILED)


@app.command("check")
def check_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tunnel's configuration.")],
    json_output: JsonFlag = False,
) -> None:
    """Say all that the tunnel would not take, or would take otherwise than it was meant."""
    output = Output(json_output)
    wrong = list(faults(value_of_file(file, "configuration of a tunnel")))
    if output.json:
        output.document({"faults": wrong})
    else:
        for line in wrong or [f"{file} is fine."]:
            output.line(line)
    if wrong:
        raise typer.Exit(ExitCode.RUN_FAILED)


def _present(file: Path | None) -> str:
    """Empty: there is none."""
    try:
        return file.read_text("utf-8") if file is not None and file.exists() else ""
    except (OSError, ValueError) as error:
        raise CommandError(ExitCode.USAGE, f"{file} cannot be read: {error}.") from None


def _kept(file: Path | None, text: str, *, force: bool) -> dict[str, Any]:
    """What else stands in the file. Raises CommandError where somebody else wrote rules into it."""
    if file is None or not text:
        return {}
    there = value_of_file(file, "configuration of a tunnel")
    if not isinstance(there, dict):
        raise CommandError(ExitCode.USAGE, f"{file} is no configuration of a tunnel; write to another file.")
    if "ingress" in there and not text.startswith(HEADER) and not force:
        raise CommandError(
            ExitCode.USAGE, f"{file} has rules that `ingress render` has not written; --force replaces them."
        )
    return there


def _write(file: Path, text: str) -> None:
    """Beside it first, so that the tunnel never reads half a file; its rights stay."""
    try:
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        handle, unfinished = tempfile.mkstemp(dir=file.parent or None, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as opened:
                opened.write(text)
            Path(unfinished).chmod(mode)
            Path(unfinished).replace(file)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{file} cannot be written: {error}.") from None
