"""The command line: puts the commands together, and turns every error into a message and an exit code.

A client of the API, and of the database where there is no API to ask. It starts the platform's processes (`up`,
`demo`), and imports none of them. Nobody who uses it sees a traceback, unless AGENTCTL_TRACEBACK asks for it.
"""

import contextlib
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.core import Command
from typer._click.shell_completion import CompletionItem
from typer.main import get_command

from agentctl.command_table import COMMANDS
from agentctl.exit_codes import MEANINGS, CommandError, ExitCode, exit_code_of_error
from agentctl.groups import Group
from agentctl.terminal.advice import advice
from agentctl.terminal.output import Output, ReaderGone, open_streams
from backplane import VERSION
from backplane.errors import PlatformError

TRACEBACK = "AGENTCTL_TRACEBACK"

EPILOG = "\n".join(
    [
        "AGENT_URL names the API (http://127.0.0.1:8000), AGENT_TOKEN the token (else what is in .data/token).",
        "Exit codes:",
        *(f"{code.value}: {meaning}" for code, meaning in MEANINGS.items()),
    ]
)


class Commands(Group):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, attribute, panel, _ = COMMANDS[cmd_name]
            loaded, one = getattr(import_module(module), attribute), typer.Typer(add_completion=False)
            if isinstance(loaded, typer.Typer):
                one.add_typer(loaded, name=cmd_name, rich_help_panel=panel)
                group: Any = get_command(one)
                self.commands[cmd_name] = group.commands[cmd_name]
            else:
                one.command(cmd_name, rich_help_panel=panel)(loaded)
                self.commands[cmd_name] = get_command(one)
        return super().get_command(ctx, cmd_name)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Loads no command for its name."""
        names = [
            CompletionItem(name, help=place.summary) for name, place in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*names, *Command.shell_complete(self, ctx, incomplete)]


app = typer.Typer(
    name="agentctl",
    cls=Commands,
    help="Run agents, watch them, and run the platform that runs them.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def agentctl(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, help="Show the version.", callback=lambda wanted: _print_version(wanted)
        ),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON. May stand here or behind the command.")
    ] = False,
) -> None:
    """Run agents, watch them, and run the platform that runs them."""


def _print_version(version: bool) -> None:
    if version:
        Output().line(VERSION)
        raise typer.Exit


def main() -> None:
    open_streams()
    try:
        app(prog_name="agentctl")
    except CommandError as error:
        _fail(error.message, error.exit_code, advice(error.code, _command()))
    except PlatformError as error:
        _fail(error.message, exit_code_of_error(error), advice(error.code, _command()))
    except ReaderGone:
        _leave_nothing_to_write()
        sys.exit(ExitCode.READER_GONE)
    except UnicodeEncodeError as error:
        _fail(_not_utf8(error), ExitCode.USAGE)
    except OSError as error:
        _fail(f"This machine refuses: {error}", ExitCode.UNREACHABLE)
    except Exception as error:
        _fail(_own_fault(error), ExitCode.FAULT)


def _command() -> str:
    """The command that was given, such as `ledger`; empty where none was."""
    return next((word for word in sys.argv[1:] if word in COMMANDS), "")


def _fail(message: str, code: ExitCode, advice: str | None = None) -> None:
    output = Output()
    with contextlib.suppress(ReaderGone, OSError):
        for line in message.splitlines():
            output.note(line, "red")
        if advice:
            output.note(advice)
    _leave_nothing_to_write()
    sys.exit(code)


def _leave_nothing_to_write() -> None:
    """What cannot be written now would be tried again as the interpreter ends, which then complains."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (ReaderGone, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _not_utf8(error: UnicodeEncodeError) -> str:
    wrong = [
        word for word in [*sys.argv[1:], *os.environ.values()] if any("\udc80" <= char <= "\udcff" for char in word)
    ]
    which = os.fsencode(wrong[0]) if wrong else error.object[error.start : error.end]
    return f"The command line or the environment holds text that is not UTF-8: {which!r}."


def _own_fault(error: Exception) -> str:
    """What nobody has thought of. What a server of another release answers may be the reason."""
    if os.environ.get(TRACEBACK):
        raise error
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" ({Path(at.tb_frame.f_code.co_filename).name}, line {at.tb_lineno})" if at else ""
    return (
        f"agentctl cannot go on: {type(error).__name__}: {error}{where}. Either the API is of another release than "
        f"agentctl {VERSION}, or this is a fault of agentctl; {TRACEBACK}=1 shows where."
    )


if __name__ == "__main__":
    main()
