"""What people did, as the audit log keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from backplane.domain.users import Caller

TARGET_CHARS = 300
OPERATOR = "operator"
"""Whoever works on the database directly: no user of the platform, and no token."""


class AuditOutcome(StrEnum):
    BEGUN = "begun"
    """It is under way, or the process ended in the middle of it: nobody wrote down how it ended."""
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"

    @classmethod
    def of_status(cls, status: int) -> "AuditOutcome":
        """Of the status of an HTTP answer."""
        return cls.DONE if status < 400 else cls.REFUSED if status < 500 else cls.FAILED


@dataclass(frozen=True, slots=True)
class Deed:
    """Who does what to what. `action` is the id of the API's operation, or `token.create` and its like for what is done
    elsewhere. `details` has names and choices, and never a secret."""

    action: str
    target: str
    user_id: str = ""
    user_name: str = OPERATOR
    token_id: str | None = None
    session_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def by(cls, caller: Caller, action: str, target: str, **details: Any) -> "Deed":
        user = caller.user
        return cls(action, target, user.id, user.name, caller.token_id, caller.session_id, details)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """`status` is that of the HTTP answer, where there was one."""

    seq: int
    at: datetime
    deed: Deed
    outcome: AuditOutcome
    status: int | None


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """`user_id` None: everybody's. `action` as `Deed` has it."""

    user_id: str | None = None
    action: str | None = None
