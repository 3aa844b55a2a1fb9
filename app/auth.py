"""Bearer token, or a session's cookie → Caller. One that was checked is trusted for a few seconds, so a revoked one
lives that long at most. Which cookies count is decided before (`app.edge.own_origin`)."""

import asyncio
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.types import Scope

from backplane.domain.users import Caller, Credential, CredentialKind, Tier, User
from backplane.errors import Forbidden, RateLimited, ReadOnly, Unauthenticated
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
CHECK_BY_THEMSELVES = frozenset({"/agent/execute", "/mcp"})
"""Paths of which some POSTs only read: their routes refuse a read-only token by themselves."""
SCOPE_USER = "agent.user"
"""Under which the user stands in the request's scope (`app.edge.gate`)."""
SCOPE_CALLER = "agent.caller"
"""Under which the user's credential stands there, too."""
COOKIE = "agent_session"
NO_TOKEN = "send the header `Authorization: Bearer TOKEN`"  # noqa: S105 - a sentence

Value = TypeVar("Value")


class Authenticator:
    """`trust_seconds`: how long a check holds, of a valid token as of an unknown one. Only digests are kept."""

    def __init__(self, store: Store, rate_limiter: RateLimiter, trust_seconds: float) -> None:
        self._store = store
        self._rate_limiter = rate_limiter
        self._trust_seconds = trust_seconds
        self._checked: dict[str, tuple[float, Caller]] = {}
        self._refused_until: dict[str, float] = {}
        self._unknown: dict[str, float] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._waiting = 0

    def has_seen(self, shown: Credential) -> bool:
        """Whether this process found it valid in the last SEEN_SECONDS, and not invalid since. It is no permission:
        `caller_of` alone says whether it is valid now."""
        until, _ = self._checked.get(shown.digest, (-math.inf, None))
        return time.monotonic() < until - self._trust_seconds + SEEN_SECONDS

    async def caller_of(self, shown: Credential) -> Caller:
        """Raises Unauthenticated, RateLimited, or Unavailable when the database does not answer."""
        now = time.monotonic()
        until, caller = self._checked.get(shown.digest, (0.0, None))
        if caller is None or until < now or (caller.expires_at and caller.expires_at <= datetime.now(UTC)):
            caller = await self._look_up(shown, now, is_new=caller is None)
        if wait := await self._rate_limiter.take(caller.rate_name):
            await self._pause(caller.rate_name)
            raise RateLimited(
                "this token calls more often than API_RATE_PER_SECOND allows; wait as long as Retry-After says",
                retry_after=math.ceil(wait),
            )
        return caller

    def forget(self, shown: Credential) -> None:
        """It is valid no more: the next request that shows it is a stranger's, in this process at once."""
        self._checked.pop(shown.digest, None)

    async def pause(self, scope: Scope) -> None:
        """Before a refusal of what is over a limit of the user's own; `scope` is the request's."""
        caller: Caller | None = scope.get(SCOPE_CALLER)
        await self._pause(caller.rate_name if caller is not None else "")

    async def _pause(self, name: str) -> None:
        """Before a refusal: none for the first ones, then as long as refusals of this token come too fast."""
        now, each = time.monotonic(), 1 / REFUSALS_PER_SECOND
        if name not in self._refused_until and len(self._refused_until) >= CACHED_TOKENS:
            self._refused_until.clear()
        until = max(self._refused_until.get(name, 0.0), now - REFUSALS_AT_ONCE * each) + each
        self._refused_until[name] = min(until, now + LONGEST_PAUSE_SECONDS)
        if until > now:
            await asyncio.sleep(self._refused_until[name] - now)

    async def _look_up(self, shown: Credential, now: float, *, is_new: bool) -> Caller:
        caller = None
        if self._unknown.get(shown.digest, 0.0) <= now:
            caller = await (self._in_turn(shown) if is_new else self._stored(shown))
        if caller is None:
            self._checked.pop(shown.digest, None)
            _keep(self._unknown, shown.digest, now + self._trust_seconds)
            raise Unauthenticated(f"this {shown.kind} is unknown, revoked or over")
        _keep(self._checked, shown.digest, (now + self._trust_seconds, caller))
        return caller

    async def _in_turn(self, shown: Credential) -> Caller | None:
        if self._waiting >= LOOKUPS_WAITING:
            raise RateLimited("too many tokens that are not known here are being looked up; try again", retry_after=1)
        self._waiting += 1
        try:
            async with self._lookups:
                return await self._stored(shown)
        finally:
            self._waiting -= 1

    async def _stored(self, shown: Credential) -> Caller | None:
        of_kind = self._store.users if shown.kind is CredentialKind.TOKEN else self._store.sessions
        return await of_kind.caller_of(shown.digest)


def has_authorization(scope: Scope) -> bool:
    """Whether there is such a header at all: a cookie does not count beside it."""
    return any(name == b"authorization" for name, _ in scope["headers"])


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
            raise Unauthenticated(NO_TOKEN)
        return user


_current_user = _CurrentUser()
CurrentUser = Annotated[User, Depends(_current_user)]


@dataclass(frozen=True, slots=True)
class Access:
    """Whose token or session a request shows, and the digest of that: what a stream needs to be checked again."""

    user: User
    digest: str

    @classmethod
    def of(cls, user: User, scope: Scope) -> "Access":
        """`scope` is that of a request whose token or session was found to be this user's."""
        caller: Caller = scope[SCOPE_CALLER]
        return cls(user, caller.digest)


class _CurrentAccess(_BearerOf):
    async def __call__(self, request: Request) -> Access:  # type: ignore[override]
        return Access.of(await _current_user(request), request.scope)


CurrentAccess = Annotated[Access, Depends(_CurrentAccess())]


class _CurrentCaller(_BearerOf):
    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        await _current_user(request)
        caller: Caller = request.scope[SCOPE_CALLER]
        return caller


CurrentCaller = Annotated[Caller, Depends(_CurrentCaller())]


class _CurrentSession(APIKeyCookie):
    def __init__(self) -> None:
        super().__init__(
            name=COOKIE,
            scheme_name="SessionCookie",
            auto_error=False,
            description="What a person who signed in has in place of a token: it counts for pages of the API alone.",
        )

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        await _current_user(request)
        caller: Caller = request.scope[SCOPE_CALLER]
        if caller.session_id is None:
            raise Unauthenticated("this is a token and no session; sign in by POST /console/session")
        return caller


CurrentSession = Annotated[Caller, Depends(_CurrentSession())]


def check_may_change(scope: Scope) -> None:
    """Raises ReadOnly."""
    caller: Caller | None = scope.get(SCOPE_CALLER)
    if caller is not None and caller.is_read_only:
        raise ReadOnly


async def admin_only(user: CurrentUser) -> User:
    # Asynchronous for its price alone: FastAPI calls a plain function in a thread.
    if user.tier is not Tier.ADMIN:
        raise Forbidden(f"this is for users of the tier admin, and {user.name} has the tier {user.tier}")
    return user


Admin = Annotated[User, Depends(admin_only)]
