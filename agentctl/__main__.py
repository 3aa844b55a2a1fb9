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
from typer.main import get_command

from agentctl import completion, dead_letters, decisions, derived_runs, files, runs, storage, validate, webhooks
from agentctl.exit_codes import MEANINGS, CommandError, ExitCode, exit_code_of_error
from agentctl.groups import Group
from agentctl.output import Output, ReaderGone, open_streams
from backplane import VERSION
from backplane.errors import PlatformError

TRACEBACK = "AGENTCTL_TRACEBACK"

HERE, RUNS, OPERATORS = "The platform on this machine", "Runs", "For operators"

# The commands that need the database's and the workspaces' libraries, which take four times as long to load as all
# the rest of a client's command: loaded when they are called, and for the help.
LOADED_WHEN_CALLED = {
    "up": ("agentctl.up", "up", HERE),
    "demo": ("agentctl.demo", "demo", HERE),
    "token": ("agentctl.admin", "tokens", OPERATORS),
    "migrate": ("agentctl.admin", "migrate", OPERATORS),
    "take-over-redis": ("agentctl.admin", "take_over_redis", OPERATORS),
    "artifacts": ("agentctl.artifacts", "app", RUNS),
    "calibrate": ("agentctl.calibrate", "calibrate", OPERATORS),
    "models": ("agentctl.models", "app", OPERATORS),
    "budget": ("agentctl.ledger", "budget", RUNS),
    "secrets": ("agentctl.secrets", "app", RUNS),
    "ledger": ("agentctl.ledger", "app", OPERATORS),
    "doctor": ("agentctl.doctor", "doctor", OPERATORS),
    "settings": ("agentctl.about", "settings", OPERATORS),
    "version": ("agentctl.about", "show_version", OPERATORS),
}

EPILOG = "\n".join(
    [
        "AGENT_URL names the API (http://127.0.0.1:8000), AGENT_TOKEN the token (else what is in .data/token).",
        "Exit codes:",
        *(f"{code.value}: {meaning}" for code, meaning in MEANINGS.items()),
    ]
)


class Commands(Group):
    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *(name for name in LOADED_WHEN_CALLED if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in LOADED_WHEN_CALLED and cmd_name not in self.commands:
            module, attribute, panel = LOADED_WHEN_CALLED[cmd_name]
            loaded, one = getattr(import_module(module), attribute), typer.Typer()
            if isinstance(loaded, typer.Typer):
                one.add_typer(loaded, name=cmd_name, rich_help_panel=panel)
                group: Any = get_command(one)
                self.commands[cmd_name] = group.commands[cmd_name]
            else:
                one.command(cmd_name, rich_help_panel=panel)(loaded)
                self.commands[cmd_name] = get_command(one)
        return super().get_command(ctx, cmd_name)


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
        bool, typer.Option("--version", is_eager=True, help="Show the version.", callback=lambda wanted: _tell(wanted))
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON. May stand here or behind the command.")
    ] = False,
) -> None:
    """Run agents, watch them, and run the platform that runs them."""


def _tell(version: bool) -> None:
    if version:
        Output().line(VERSION)
        raise typer.Exit


app.command(rich_help_panel=RUNS)(runs.run)
app.command(rich_help_panel=RUNS)(runs.start)
app.command(rich_help_panel=RUNS)(validate.validate)
app.command(rich_help_panel=RUNS)(validate.tools)
app.command(rich_help_panel=RUNS)(runs.logs)
app.command(rich_help_panel=RUNS)(runs.events)
app.command(rich_help_panel=RUNS)(runs.runs)
app.command(rich_help_panel=RUNS)(runs.show)
app.command(rich_help_panel=RUNS)(runs.cancel)
app.command(rich_help_panel=RUNS)(runs.retry)
app.command(rich_help_panel=RUNS)(runs.explain)
app.command(rich_help_panel=RUNS)(runs.queue)
app.command(rich_help_panel=RUNS)(storage.usage)
app.command(rich_help_panel=RUNS)(storage.delete)
app.command(rich_help_panel=RUNS)(decisions.decisions)
app.command(rich_help_panel=RUNS)(decisions.approve)
app.command(rich_help_panel=RUNS)(decisions.reject)
app.command(rich_help_panel=RUNS)(decisions.answer)
app.command(rich_help_panel=RUNS)(derived_runs.fork)
app.command(rich_help_panel=RUNS)(derived_runs.replay)
app.command(rich_help_panel=RUNS)(derived_runs.plans)
app.command("model-calls", rich_help_panel=RUNS)(derived_runs.model_calls)
app.command("webhook-secret", rich_help_panel=RUNS)(webhooks.webhook_secret)
app.add_typer(files.app, name="files", rich_help_panel=RUNS)
app.add_typer(dead_letters.app, name="dlq", rich_help_panel=OPERATORS)
app.command(rich_help_panel=HERE)(completion.completion)


def main() -> None:
    open_streams()
    try:
        app(prog_name="agentctl")
    except CommandError as error:
        _fail(error.message, error.exit_code)
    except PlatformError as error:
        _fail(error.message, exit_code_of_error(error))
    except ReaderGone:
        _leave_nothing_to_write()
        sys.exit(ExitCode.READER_GONE)
    except UnicodeEncodeError as error:
        _fail(_not_utf8(error), ExitCode.USAGE)
    except OSError as error:
        _fail(f"This machine refuses: {error}", ExitCode.UNREACHABLE)
    except Exception as error:
        _fail(_own_fault(error), ExitCode.FAULT)


def _fail(message: str, code: ExitCode) -> None:
    output = Output()
    with contextlib.suppress(ReaderGone, OSError):
        for line in message.splitlines():
            output.note(line, "red")
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
