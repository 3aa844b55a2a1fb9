"""ASGI middleware that finds out whose a request is, before anything of its body is read: by its token, or by the
cookie of a session that the API's own pages send (`app.edge.own_origin`).

Requests without a valid token are counted by the address that they came from. Each takes from the allowance of that
address; when it is used up, further ones are answered 429 after a pause, so that a flood costs little. A token that
this process has seen to be valid is not held up by what others at the same address do, and one that it has not seen is
looked up after the pause, so a valid one is only late. `/health/…` is answered after the pause, since whoever operates
the process restarts it when it is refused.

Routes read the user from the request (`app.auth.current_user`), and refuse where there is none: so a path that is
forgotten here lets nobody in. What changes something is refused here to a token that only reads, whatever the path.
"""

import asyncio
import math
import time
from collections import Counter, OrderedDict

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth import (
    CHECK_BY_THEMSELVES,
    HOOKS,
    NO_TOKEN,
    SCOPE_CALLER,
    SCOPE_USER,
    WITH_TOKEN,
    Authenticator,
    bearer_token,
    check_may_change,
    has_authorization,
)
from app.edge.connections import ConnectionLimits, TrustedProxies, address_key
from app.edge.own_origin import check_not_foreign, check_own, own_origin, peer_of, session_value
from app.edge.protocol import SCOPE_CONNECTION, LimitedProtocol
from app.errors import of_platform_error
from backplane.domain.users import Caller, Credential
from backplane.errors import ForeignOrigin, PlatformError, RateLimited, Unauthenticated, Unavailable

PAUSE_SECONDS = 1.0
"""Before a refusal, so that an address gets as many of them a second as it has connections, and no more."""
PAUSED_MAX = 256
"""Requests of one address that wait at once; further ones are refused at once, and their token is not looked up."""
ADDRESSES_MAX = 10_000
SESSION = "/console/session"
"""Where people sign in with a token in the body, ask whose the session is, and sign out."""
SCOPE_OWN_ORIGIN = "agent.own_origin"
"""Under which the API's own origin stands in the scope of a request to SESSION."""


log = structlog.get_logger()


class Allowance:
    """Requests without a token of each address: `per_second` in the long run (0: any number), `burst` at once.

    Kept in this process alone, for the addresses that called last.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._seconds_each = 1 / per_second if per_second else 0.0
        self._burst_seconds = burst * self._seconds_each
        self._full_at = OrderedDict[str, float]()

    def wait(self, address: str, now: float) -> float:
        """Seconds until there is one left; 0.0: there is."""
        if not self._seconds_each:
            return 0.0
        return max(0.0, self._full_at.get(address, now) - now + self._seconds_each - self._burst_seconds)

    def take(self, address: str, now: float) -> None:
        if not self._seconds_each:
            return
        full_at = max(self._full_at.pop(address, now), now) + self._seconds_each
        # Those that were let in together may owe some, but not for long.
        self._full_at[address] = min(full_at, now + 2 * self._burst_seconds)
        if len(self._full_at) > ADDRESSES_MAX:
            self._full_at.popitem(last=False)


class TokenGate:
    def __init__(
        self, app: ASGIApp, *, limits: ConnectionLimits, proxies: TrustedProxies, allowance: Allowance
    ) -> None:
        self._app = app
        self._limits = limits
        self._proxies = proxies
        self._allowance = allowance
        self._paused = Counter[str]()
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(scope)
            if caller is not None:
                scope[SCOPE_USER] = caller.user
                scope[SCOPE_CALLER] = caller
                connection: LimitedProtocol | None = scope.get(SCOPE_CONNECTION)
                if connection is not None:
                    self._limits.recognised(connection, caller.user.id)
                if scope["method"] not in ("GET", "HEAD") and _path(scope) not in CHECK_BY_THEMSELVES | {SESSION}:
                    check_may_change(scope)
        except PlatformError as error:
            await of_platform_error(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller | None:
        """None where none is needed. Raises Unauthenticated, ForeignOrigin, RateLimited or Unavailable."""
        path, method = _path(scope), scope["method"]
        wants_caller = path.startswith(WITH_TOKEN) or path == "/mcp" or (path == SESSION and method != "POST")
        if path.startswith(HOOKS) and method == "POST":
            wants_caller = False  # whoever posts to a hook signs what is posted
        shown, foreign = self._shown(scope, path)
        authenticator: Authenticator = scope["app"].state.authenticator
        if shown is not None and path != "/health/live" and authenticator.has_seen(shown):
            try:
                caller = await authenticator.caller_of(shown)
                return caller if wants_caller else None
            except Unauthenticated:
                pass  # Revoked: from here on it is a stranger's.
            except Unavailable:
                # Nobody can say whose it is; a stranger may ask for what needs no token.
                if wants_caller:
                    raise
        address = self._address(scope)
        if wait := self._allowance.wait(address, time.monotonic()):
            too_many = RateLimited(
                "too many requests without a valid token came from this address "
                "(API_ANONYMOUS_RATE_PER_SECOND); wait as long as Retry-After says",
                retry_after=math.ceil(wait),
            )
            has_paused = await self._pause(address)
            if wants_caller and shown is not None and has_paused:
                try:
                    return await authenticator.caller_of(shown)
                except Unauthenticated:
                    raise too_many from None
            if not path.startswith("/health/"):
                raise too_many
        if not wants_caller:
            self._allowance.take(address, time.monotonic())
            if foreign is not None and path == SESSION:
                raise foreign
            return None
        try:
            if shown is None:
                raise foreign or Unauthenticated(NO_TOKEN)
            return await authenticator.caller_of(shown)
        except (Unauthenticated, ForeignOrigin):
            self._allowance.take(address, time.monotonic())
            raise

    def _shown(self, scope: Scope, path: str) -> tuple[Credential | None, ForeignOrigin | None]:
        """What the request shows, and why what else it carries does not count. A cookie never counts beside a header
        `Authorization`, be that valid or not."""
        signs_in = path == SESSION and scope["method"] == "POST"
        if path != SESSION and has_authorization(scope):
            return _bearer(scope), None
        if path != SESSION and not any(name == b"cookie" for name, _ in scope["headers"]):
            return None, None
        own = scope[SCOPE_OWN_ORIGIN] = own_origin(scope, self._proxies)
        try:
            if signs_in:
                check_not_foreign(scope, own)
        except ForeignOrigin as error:
            return None, error
        if has_authorization(scope):
            return _bearer(scope), None
        value = session_value(scope, own)
        if value is None:
            return None, None
        try:
            check_own(scope, own)
        except ForeignOrigin as error:
            return None, None if signs_in else error
        return Credential.of_session(value), None

    async def _pause(self, address: str) -> bool:
        """False, and at once, where too many of this address wait already."""
        if self._paused[address] >= PAUSED_MAX:
            return False
        self._paused[address] += 1
        try:
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._paused[address] -= 1
            if not self._paused[address]:
                del self._paused[address]
        return True

    def _address(self, scope: Scope) -> str:
        """uvicorn believes proxies on this machine by itself; here only those count that the operator has named."""
        peer = peer_of(scope)
        forwarded = b", ".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        if forwarded and peer and peer not in self._proxies and not self._has_warned:
            # Once: a stranger can send this header too.
            self._has_warned = True
            log.warning(
                "X-Forwarded-For came from an address that API_TRUSTED_PROXIES does not name, so it is not believed; "
                "if this is your proxy, name it there, else all who come through it share one allowance",
                peer=peer,
            )
        return address_key(self._proxies.client(peer, forwarded.decode("latin-1")))


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _bearer(scope: Scope) -> Credential | None:
    token = bearer_token(scope)
    return Credential.of_token(token) if token is not None else None
