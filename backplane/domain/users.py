"""Users, their tiers, and the bearer tokens that stand for them.

A token is 32 random bytes, so one round of SHA-256 is enough to store it: there is nothing to guess
(password hashing exists for secrets that people choose). The same holds for the value of a session.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from backplane.domain.runs import Priority

TOKEN_PREFIX = "agt_"  # noqa: S105 - what all tokens begin with, so that scanners find leaked ones

SESSION_LONGEST = timedelta(days=7)
SESSION_LONGEST_WITHOUT_USE = timedelta(hours=12)
SESSIONS_MAX = 100
"""Of one user at once; one more ends the oldest."""


class Tier(StrEnum):
    FREE = "free"
    STANDARD = "standard"
    BETA = "beta"
    ADMIN = "admin"


PRIORITY_OF_TIER = {
    Tier.FREE: Priority.LOW,
    Tier.STANDARD: Priority.NORMAL,
    Tier.BETA: Priority.HIGH,
    Tier.ADMIN: Priority.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str
    tier: Tier

    @property
    def priority(self) -> Priority:
        return PRIORITY_OF_TIER[self.tier]


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token after it was shown once: never the token itself."""

    id: str
    user: User
    label: str
    created_at: datetime
    revoked_at: datetime | None
    is_read_only: bool = False
    expires_at: datetime | None = None


class CredentialKind(StrEnum):
    TOKEN = "token"  # noqa: S105 - a kind, and no password
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request shows to say whose it is. `digest` stands for it wherever it is kept."""

    kind: CredentialKind
    digest: str

    @classmethod
    def of_token(cls, token: str) -> "Credential":
        return cls(CredentialKind.TOKEN, token_digest(token))

    @classmethod
    def of_session(cls, value: str) -> "Credential":
        return cls(CredentialKind.SESSION, session_digest(value))


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a valid credential is, and what it allows. `digest` is the credential's; `token_digest` that of its token,
    which is another one for a session. `expires_at`: from then on it is valid no more."""

    user: User
    digest: str
    token_id: str
    token_digest: str
    is_read_only: bool = False
    expires_at: datetime | None = None
    session_id: str | None = None

    @property
    def rate_name(self) -> str:
        """By which its calls are counted: those of all sessions of a token together with the token's own."""
        return f"token:{self.token_digest[:16]}"


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def new_session() -> str:
    return secrets.token_urlsafe(32)


def session_digest(value: str) -> str:
    """No token has the same one, so neither is ever taken for the other."""
    return hashlib.sha256(b"session " + value.encode("utf-8", "surrogatepass")).hexdigest()
