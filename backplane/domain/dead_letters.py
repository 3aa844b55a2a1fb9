"""Which failed runs an operator has to look at: a pure decision, and what is kept of a failure.

A run that failed because of what it asks (a command's exit code, a plan that cannot be carried out, its own time limit)
is its user's affair and no dead letter. One that failed because of what is around it is: when that is mended, it may go
through.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from backplane.domain.events import whole_characters
from backplane.domain.runs import RunError
from backplane.errors import NotFound

TRACEBACK_MAX_CHARS = 16 * 1024
TRACEBACK_READ_CHARS = 4 * TRACEBACK_MAX_CHARS
"""Of its end. What an error says may have any length, and the event loop waits for this."""
PROMPT_HEAD_CHARS = 200

_PASSWORD_IN_URL = re.compile(r"://([^\s:/@]*:)[^\s/@]+(?=@)")
"""Without the scheme: to look for where one begins takes as long as a text is, at each of its words."""
_TOKEN = re.compile(r"\bagt_[\w-]+")


class DeadReason(StrEnum):
    RETRIES_EXHAUSTED = "retries_exhausted"
    """The failure could have passed, and did not in as many attempts as the run had."""
    POISON = "poison"
    """The workers that had the run were lost, again and again."""
    INTERNAL_ERROR = "internal_error"
    """A fault of the platform, again at the last attempt; or of a part that refused what was to be stored."""


def dead_reason(error: RunError) -> DeadReason | None:
    """Why a run that ends with this error, and is not tried again, is a dead letter; None: it is an ordinary
    failure."""
    if error.code == "worker_lost":
        return DeadReason.POISON
    if error.code in ("internal_error", "not_stored", "part_refuses"):
        return DeadReason.INTERNAL_ERROR
    return DeadReason.RETRIES_EXHAUSTED if error.retryable else None


def kept_traceback(text: str) -> str:
    """A traceback as it is stored: without passwords in URLs and tokens, which messages of libraries may repeat, and
    without its beginning where it is longer than TRACEBACK_MAX_CHARS."""
    unread = max(len(text) - TRACEBACK_READ_CHARS, 0)
    clean = whole_characters(_TOKEN.sub("agt_***", _PASSWORD_IN_URL.sub(r"://\1***", text[unread:])))
    left_out = unread + max(len(clean) - TRACEBACK_MAX_CHARS, 0)
    if not left_out:
        return clean
    return f"… {left_out} characters before this are left out\n{clean[-TRACEBACK_MAX_CHARS:]}"


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that failed. `traceback` is empty where a step failed: `error.step` names it, and the journal has its
    output."""

    attempt: int
    generation: int
    at: datetime
    worker_id: str | None
    error: RunError
    traceback: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`attempts`: how many its last life had; `crashes`: workers that were lost with it. `prompt_head`: its first
    PROMPT_HEAD_CHARS characters."""

    run_id: str
    reason: DeadReason
    at: datetime
    attempts: int
    crashes: int
    user_id: str
    user_name: str
    created_at: datetime
    prompt_head: str
    error: RunError | None


class DeadCursor(NamedTuple):
    """Where a page ended. Dead letters are ordered by time, and by id where the times are the same."""

    at: datetime
    run_id: str


def no_dead_letter(run_id: str) -> NotFound:
    return NotFound(f"there is no dead letter of run {run_id}; GET /agent/dead-letters lists those there are")
