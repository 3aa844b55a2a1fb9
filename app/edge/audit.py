"""ASGI middleware that writes down who changes what: before it is done, and how it ended after it.

Each request that changes something is written down by the id of its operation, so a route that is added is in it by
itself. Not written down is what programs do all the time and what is kept elsewhere: runs and their files, messages and
states of agents, events. The path is the target: it has names and ids, and no value. Of the body a route notes
what a person chose (`note`), and never a secret.

Where the database does not answer, nothing is changed either: the request is refused before it begins.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import SCOPE_CALLER
from app.errors import of_platform_error
from backplane.domain.audit import Deed
from backplane.domain.users import Caller
from backplane.errors import PlatformError
from backplane.process.tasks import uninterrupted
from backplane.store import Store

NOT_WRITTEN_DOWN = frozenset(
    {
        "execute",
        "put_file",
        "delete_file",
        "send_message",
        "put_agent_state",
        "publish_events",
        "receive_hook",
        "put_preferences",
        "sign_in",
        "sign_out",
    }
)
"""Operations. Sessions are written down with what the store does of them."""
SCOPE_NOTED = "agent.noted"
READS = frozenset({"GET", "HEAD", "OPTIONS"})

log = structlog.get_logger()


class AuditedChanges:
    """Inside of the gate, which finds out who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller | None = scope.get(SCOPE_CALLER)
        operation = _operation(scope) if caller is not None and scope["method"] not in READS else None
        if caller is None or operation is None or operation in NOT_WRITTEN_DOWN:
            await self._app(scope, receive, send)
            return
        store: Store = scope["app"].state.context.resources.store
        try:
            seq = await store.audit.begin(Deed.by(caller, operation, scope["path"]))
        except PlatformError as error:
            await of_platform_error(error)(scope, receive, send)
            return

        noted: dict[str, Any] = {}
        scope[SCOPE_NOTED] = noted

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                await uninterrupted(_end(store, seq, message["status"], noted))
            await send(message)

        try:
            await self._app(scope, receive, seen)
        except asyncio.CancelledError:
            raise
        except Exception:
            await uninterrupted(_end(store, seq, 500, noted))
            raise


def note(scope: Scope, **details: str | int | bool) -> None:
    """Add to the entry of this request what was chosen."""
    scope.get(SCOPE_NOTED, {}).update(details)


async def _end(store: Store, seq: int, status: int, details: Mapping[str, Any]) -> None:
    try:
        await store.audit.end(seq, status, details)
    except PlatformError as error:
        # It is done, and whoever asked is to know; the entry stays one whose end nobody wrote down.
        log.error("cannot write down how something ended", entry=seq, status=status, error=error.message)


def _operation(scope: Scope) -> str | None:
    """The id of the operation that the request asks for; None: there is none."""
    routes: list[Any] = scope["app"].router.routes
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema and route.matches(scope)[0] is Match.FULL:
            return route.operation_id or route.name
    return None
