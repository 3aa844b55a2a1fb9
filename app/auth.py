"""Bearer token → User. A token that was checked is trusted for a few seconds, so a revoked one lives that long at
most."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from backplane.errors import Forbidden, RateLimited, Unauthenticated
from backplane.rates.base import RateLimiter
from backplane.store import Store
from backplane.users import Tier, User, token_digest

CACHED_TOKENS = 10_000
REFUSALS_PER_SECOND = 10
"""So often a token that calls too often, or asks for more than its user may have, is told so; further refusals wait, so
that a client that does not stop costs little, however many connections it has."""
REFUSALS_AT_ONCE = 20
LONGEST_PAUSE_SECONDS = 30.0

_bearer = HTTPBearer(auto_error=False, description="A token as `agentctl token create` shows it.")


class Authenticator:
    """`trust_seconds`: how long a check holds. Only digests are kept."""

    def __init__(self, store: Store, rate_limiter: RateLimiter, trust_seconds: float) -> None:
        self._store = store
        self._rate_limiter = rate_limiter
        self._trust_seconds = trust_seconds
        self._checked: dict[str, tuple[float, User]] = {}
        self._refused_until: dict[str, float] = {}

    async def user_of(self, token: str) -> User:
        """Raises Unauthenticated, RateLimited, or Unavailable when the database does not answer."""
        digest, now = token_digest(token), time.monotonic()
        until, user = self._checked.get(digest, (0.0, None))
        if user is None or until < now:
            user = await self._store.users.user_of(token)
            if user is None:
                self._checked.pop(digest, None)
                raise Unauthenticated("this token is unknown or revoked; `agentctl token create` makes a new one")
            if len(self._checked) >= CACHED_TOKENS:
                self._checked.clear()
            self._checked[digest] = (now + self._trust_seconds, user)
        if wait := await self._rate_limiter.take(f"token:{digest[:16]}"):
            await self._pause(digest)
            raise RateLimited(
                "this token calls more often than API_RATE_PER_SECOND allows; wait as long as Retry-After says",
                retry_after=math.ceil(wait),
            )
        return user

    async def pause(self, headers: Mapping[str, str]) -> None:
        """Before a refusal of what is over a limit of the user's own; `headers` are the request's."""
        await self._pause(token_digest(headers.get("authorization", "").partition(" ")[2].strip()))

    async def _pause(self, digest: str) -> None:
        """Before a refusal: none for the first ones, then as long as refusals of this token come too fast."""
        now, each = time.monotonic(), 1 / REFUSALS_PER_SECOND
        if digest not in self._refused_until and len(self._refused_until) >= CACHED_TOKENS:
            self._refused_until.clear()
        until = max(self._refused_until.get(digest, 0.0), now - REFUSALS_AT_ONCE * each) + each
        self._refused_until[digest] = min(until, now + LONGEST_PAUSE_SECONDS)
        if until > now:
            await asyncio.sleep(self._refused_until[digest] - now)


async def current_user(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> User:
    if credentials is None:
        raise Unauthenticated("send the header `Authorization: Bearer TOKEN`")
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.user_of(credentials.credentials)


CurrentUser = Annotated[User, Depends(current_user)]


@dataclass(frozen=True, slots=True)
class Access:
    """Whose token a request carries, and the digest of that token: what a stream needs to be checked again."""

    user: User
    digest: str

    @classmethod
    def of(cls, user: User, headers: Mapping[str, str]) -> "Access":
        """`headers` are those of a request whose token was found to be this user's."""
        return cls(user, token_digest(headers.get("authorization", "").partition(" ")[2].strip()))


async def current_access(request: Request, user: CurrentUser) -> Access:
    return Access.of(user, request.headers)


CurrentAccess = Annotated[Access, Depends(current_access)]


def admin_only(user: CurrentUser) -> User:
    if user.tier is not Tier.ADMIN:
        raise Forbidden(
            f"this is for users of the tier admin, and {user.name} has the tier {user.tier}; whoever runs the platform "
            "makes a token by `agentctl token create --user NAME --tier admin`"
        )
    return user


Admin = Annotated[User, Depends(admin_only)]
