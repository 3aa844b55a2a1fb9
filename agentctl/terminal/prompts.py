"""What a command asks whoever calls it. Without an answer nothing is done, and the exit code says why: Ctrl-C is an
interruption here as everywhere, and an input that is over is nobody who answers."""

import getpass

import typer

from agentctl.exit_codes import CommandError, ExitCode


def confirm(question: str) -> None:
    """Returns when the answer is yes. Raises CommandError: INTERRUPTED after Ctrl-C, else USAGE."""
    try:
        confirmed = typer.confirm(question, err=True)
    except typer.Abort as abort:
        typer.echo(err=True)  # the line of the question has no end yet
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise CommandError(ExitCode.INTERRUPTED, "Nothing was done.") from None
        confirmed = False
    if not confirmed:
        raise CommandError(ExitCode.USAGE, "Nothing was done; --yes does it without asking.")


def ask_without_echo(question: str) -> str:
    """Raises CommandError when the input ends without an answer."""
    try:
        return getpass.getpass(question)
    except EOFError:
        raise CommandError(ExitCode.USAGE, "No value was given; nothing was done.") from None
