"""How agentctl ends: the exit codes that scripts rely on, and the one error that carries them.

Commands raise; `agentctl.__main__.main` alone prints the message and exits. The table in docs/agentctl.md is this one.
"""

from enum import IntEnum

from backplane.errors import PlatformError, Unavailable


class ExitCode(IntEnum):
    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    RUN_CANCELLED = 3
    REFUSED = 4
    UNREACHABLE = 5
    GAVE_UP = 6
    FAULT = 70
    INTERRUPTED = 130
    READER_GONE = 141


MEANINGS = {
    ExitCode.OK: "done; a followed run has completed",
    ExitCode.RUN_FAILED: (
        "the followed run, rollout, bulk action or export has failed, runs refused it, a replay differs, or "
        "`validate`, `doctor`, `up`, `demo` or `ledger audit` found "
        "a fault"
    ),
    ExitCode.USAGE: "the command line, the environment or a file it names is wrong",
    ExitCode.RUN_CANCELLED: "the followed run was cancelled",
    ExitCode.REFUSED: "refused: not found, not allowed, not possible in this state (a 4xx answer)",
    ExitCode.UNREACHABLE: "the API, or a part it needs, cannot be reached",
    ExitCode.GAVE_UP: (
        "following ended before the run did: `--wait` is over, or the run or rollout waits for a decision; "
        "`calibrate` did not settle"
    ),
    ExitCode.FAULT: "a fault of agentctl itself, or an API of another release",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; a followed run, bulk action or export goes on",
    ExitCode.READER_GONE: (
        "whoever read the output has gone (`agentctl logs RUN | head -1`), as programs end that SIGPIPE ends"
    ),
}

_CODE_OF_STATUS = {"failed": ExitCode.RUN_FAILED, "cancelled": ExitCode.RUN_CANCELLED, "completed": ExitCode.OK}


class CommandError(Exception):
    """Ends the command with `exit_code`, after `message` was printed to standard error. `code`: of an error answer of
    the API, which `agentctl.terminal.advice` has advice for."""

    code = ""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


def exit_code_of_status(status: str) -> ExitCode:
    """The code for a run that is in `status`; GAVE_UP for one that is not over."""
    return _CODE_OF_STATUS.get(status, ExitCode.GAVE_UP)


def exit_code_of_error(error: PlatformError) -> ExitCode:
    return ExitCode.UNREACHABLE if isinstance(error, Unavailable) else ExitCode.REFUSED
