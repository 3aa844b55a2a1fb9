"""The API's error answers, as the commands see them: an exception with the problem's code, its text and its pause."""

import re
from typing import Any

import httpx

from agentctl.exit_codes import CommandError, ExitCode

JsonObject = dict[str, Any]

COMMAND_OF_CALL = {
    r"GET /api/deployments/([^/\s;]+)/revisions": r"`agentctl deployments revisions \1`",
    r"PATCH /api/deployments/[^/\s;]+": "`agentctl deployments apply FILE`",
    "GET /api/deployments": "`agentctl deployments list`",
    "GET /api/v1/agents/pools": "`agentctl pools list`",
    "GET /api/v1/agents": "`agentctl agents list`",
    "GET /api/v1/hooks": "`agentctl hooks list`",
    "GET /api/v1/schedules": "`agentctl schedules list`",
    "GET /api/nas/services": "`agentctl services list`",
    r"GET /agent/runs/([^/\s;]+)/model-calls": r"`agentctl model-calls \1`",
    r"GET /agent/runs/([^/\s;]+)/decisions": r"`agentctl decisions \1`",
    r"GET /agent/runs/([^/\s;]+)": r"`agentctl show \1`",
    "GET /agent/runs": "`agentctl runs`",
}
"""The API's advice names calls; a person needs the command that makes the call. The longest first."""
_CALLS = {re.compile(call + r"(?![/\w-])"): command for call, command in COMMAND_OF_CALL.items()}


class ApiError(CommandError):
    """An answer that is an error: its problem document, or what could be made of it."""

    def __init__(self, status: int, code: str, detail: str, field: str | None = None, retry_after: float = 0.0) -> None:
        where = f" (field {field})" if field and field not in detail else ""
        super().__init__(ExitCode.REFUSED if status < 500 else ExitCode.UNREACHABLE, f"{detail}{where} [{code}]")
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after

    @property
    def is_for_want_of_room(self) -> bool:
        """So many runs wait as may; `retry_after` (seconds) is what the API expects until there is room."""
        return self.code in {"queue_full", "too_many_waiting", "mailbox_full"}


async def raise_for_problem(response: httpx.Response) -> None:
    """Raises ApiError unless the answer is a success; the answer is closed then."""
    if response.is_success:
        return
    try:
        await response.aread()
        problem = response.json()
        error = ApiError(
            response.status_code, problem["code"], _all_of(problem), problem.get("field"), retry_after(response)
        )
    except (httpx.RequestError, ValueError, KeyError, TypeError, AttributeError):
        detail = (
            f"{response.request.url.copy_with(query=None)} answered {response.status_code} {response.reason_phrase}."
        )
        error = ApiError(response.status_code, "unexpected_answer", detail, retry_after=retry_after(response))
    finally:
        await response.aclose()
    raise error


def _all_of(problem: JsonObject) -> str:
    """Each thing that is wrong on a line of its own, where there are several."""
    return in_commands("\n".join(fault["detail"] for fault in problem.get("errors") or [problem]))


def in_commands(advice: str) -> str:
    """The API's words, with the commands in place of the calls that they make."""
    for call, command in _CALLS.items():
        advice = call.sub(command, advice)
    return advice


def retry_after(response: httpx.Response) -> float:
    """Seconds; 0 where there is no such header or it is a date."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0


def reason_of(error: Exception) -> str:
    return str(error) or type(error).__name__
