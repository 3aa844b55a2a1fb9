"""Bearer token → User. A token that was checked is trusted for a few seconds, so a revoked one lives that long at
most."""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.types import Scope

from backplane.domain.users import Tier, User, token_digest
from backplane.errors import Forbidden, RateLimited, Unauthenticated
from backplane.limits.rates.base import RateLimiter
from backplane.store import Store

CACHED_TOKENS = 10_000
SEEN_SECONDS = 600.0
"""So long after its last successful check a token counts as seen."""
REFUSALS_PER_SECOND = 10
"""How often a token that calls too often, or asks for too much, is refused without a pause; later refusals wait, so
that a client that does not stop costs little, however many connections it has."""
REFUSALS_AT_ONCE = 20
LONGEST_PAUSE_SECONDS = 30.0
LOOKUPS = 4
"""Tokens that were not seen before, and are looked up at once: a flood of them takes no more of the database."""
LOOKUPS_WAITING = 1000

WITH_TOKEN = ("/agent/", "/api/")
"""Beginnings of paths that are for whoever shows a valid token."""
HOOKS = "/api/v1/hooks/"
"""What is posted below it needs none."""
SCOPE_USER = "agent.user"
"""Under which the user stands in the request's scope (`app.edge.gate`)."""

Value = TypeVar("Value")


class Authenticator:
    """`trust_seconds`: how long a check holds, of a valid token as of an unknown one. Only digests are kept."""

    def __init__(self, store: Store, rate_limiter: RateLimiter, trust_seconds: float) -> None:
        self._store = store
        self._rate_limiter = rate_limiter
        self._trust_seconds = trust_seconds
        self._checked: dict[str, tuple[float, User]] = {}
        self._refused_until: dict[str, float] = {}
        self._unknown: dict[str, float] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._waiting = 0

    def has_seen(self, token: str) -> bool:
        """Whether this process found it valid in the last SEEN_SECONDS, and not invalid since. It is no permission:
        `user_of` alone says whether the token is valid now."""
        until, _ = self._checked.get(token_digest(token), (-math.inf, None))
        return time.monotonic() < until - self._trust_seconds + SEEN_SECONDS

    async def user_of(self, token: str) -> User:
        """Raises Unauthenticated, RateLimited, or Unavailable when the database does not answer."""
        digest, now = token_digest(token), time.monotonic()
        until, user = self._checked.get(digest, (0.0, None))
        if user is None or until < now:
            user = await self._look_up(token, digest, now, is_new=user is None)
        if wait := await self._rate_limiter.take(f"token:{digest[:16]}"):
            await self._pause(digest)
            raise RateLimited(
                "this token calls more often than API_RATE_PER_SECOND allows; wait as long as Retry-After says",
                retry_after=math.ceil(wait),
            )
        return user

    async def pause(self, scope: Scope) -> None:
        """Before a refusal of what is over a limit of the user's own; `scope` is the request's."""
        await self._pause(token_digest(bearer_token(scope) or ""))

    async def _pause(self, digest: str) -> None:
        """Before a refusal: none for the first ones, then as long as refusals of this token come too fast."""
        now, each = time.monotonic(), 1 / REFUSALS_PER_SECOND
        if digest not in self._refused_until and len(self._refused_until) >= CACHED_TOKENS:
            self._refused_until.clear()
        until = max(self._refused_until.get(digest, 0.0), now - REFUSALS_AT_ONCE * each) + each
        self._refused_until[digest] = min(until, now + LONGEST_PAUSE_SECONDS)
        if until > now:
            await asyncio.sleep(self._refused_until[digest] - now)

    async def _look_up(self, token: str, digest: str, now: float, *, is_new: bool) -> User:
        user = None
        if self._unknown.get(digest, 0.0) <= now:
            user = await (self._in_turn(token) if is_new else self._store.users.user_of(token))
        if user is None:
            self._checked.pop(digest, None)
            _keep(self._unknown, digest, now + self._trust_seconds)
            raise Unauthenticated("this token is unknown or revoked")
        _keep(self._checked, digest, (now + self._trust_seconds, user))
        return user

    async def _in_turn(self, token: str) -> User | None:
        if self._waiting >= LOOKUPS_WAITING:
            raise RateLimited("too many tokens that are not known here are being looked up; try again", retry_after=1)
        self._waiting += 1
        try:
            async with self._lookups:
                return await self._store.users.user_of(token)
        finally:
            self._waiting -= 1


def bearer_token(scope: Scope) -> str | None:
    """The token of a request, as it was sent. None where there is no header `Authorization: Bearer TOKEN`."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            return token.strip() or None if kind.lower() == "bearer" else None
    return None


def _keep(cache: dict[str, Value], digest: str, value: Value) -> None:
    if len(cache) >= CACHED_TOKENS:
        cache.clear()
    cache[digest] = value


class _BearerOf(HTTPBearer):
    """The security scheme and what a route gets of it, in one dependency: FastAPI pays for each at every request."""

    def __init__(self) -> None:
        super().__init__(
            scheme_name="HTTPBearer",
            auto_error=False,
            description="A token that whoever runs the platform has made.",
        )


class _CurrentUser(_BearerOf):
    async def __call__(self, request: Request) -> User:  # type: ignore[override]
        """The user that the gate has found."""
        user: User | None = request.scope.get(SCOPE_USER)
        if user is None:
            raise Unauthenticated("send the header `Authorization: Bearer TOKEN`")
        return user


_current_user = _CurrentUser()
CurrentUser = Annotated[User, Depends(_current_user)]


@dataclass(frozen=True, slots=True)
class Access:
    """Whose token a request carries, and the digest of that token: what a stream needs to be checked again."""

    user: User
    digest: str

    @classmethod
    def of(cls, user: User, scope: Scope) -> "Access":
        """`scope` is that of a request whose token was found to be this user's."""
        return cls(user, token_digest(bearer_token(scope) or ""))


class _CurrentAccess(_BearerOf):
    async def __call__(self, request: Request) -> Access:  # type: ignore[override]
        return Access.of(await _current_user(request), request.scope)


CurrentAccess = Annotated[Access, Depends(_CurrentAccess())]


async def admin_only(user: CurrentUser) -> User:
    # Asynchronous for its price alone: FastAPI calls a plain function in a thread.
    if user.tier is not Tier.ADMIN:
        raise Forbidden(f"this is for users of the tier admin, and {user.name} has the tier {user.tier}")
    return user


Admin = Annotated[User, Depends(admin_only)]
