"""Users, their tiers, and the bearer tokens that stand for them.

A token is 32 random bytes, so one round of SHA-256 is enough to store it: there is nothing to guess
(password hashing exists for secrets that people choose).
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from backplane.domain.runs import Priority

TOKEN_PREFIX = "agt_"  # noqa: S105 - what all tokens begin with, so that scanners find leaked ones


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


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
