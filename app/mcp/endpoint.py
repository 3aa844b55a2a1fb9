"""What stands at /mcp: lets in whoever has a token, and starts the MCP server when somebody asks for it.

The server's library is a third of all that the API would have to load before it is up, and most platforms never need
it; so it is loaded by the first call, beside what else the API does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import NO_TOKEN, SCOPE_USER
from app.edge.json_body import LARGE_BYTES
from app.errors import problem
from backplane.errors import Unauthenticated
from backplane.input.unique_json import DuplicateName, loads, place_of_duplicate
from backplane.process.tasks import end

SCOPE_CONTEXT = "agent.context"
INVALID_REQUEST = -32600
"""JSON-RPC's code for a message that is JSON and no request."""


class McpEndpoint:
    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._wanted = asyncio.Event()
        self._started: asyncio.Future[ASGIApp] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves MCP for as long as the API runs."""
        self._started = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(self._serve(self._started), name="mcp")
        try:
            yield
        finally:
            await end(serving)
            self._started.cancel()

    async def _serve(self, started: "asyncio.Future[ASGIApp]") -> None:
        await self._wanted.wait()
        try:
            async with await asyncio.to_thread(_loaded, self._max_body_bytes) as application:
                started.set_result(application)
                await asyncio.Event().wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if SCOPE_USER not in scope:
            raise Unauthenticated(NO_TOKEN)
        if scope["method"] == "GET":
            # Such a stream would only hold a connection: without sessions there is nothing that the server could send.
            detail = "this server sends nothing by itself; follow a run by the tool follow_run, or by GET /agent/events"
            await problem(405, "method_not_allowed", detail, headers={"Allow": "POST"})(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        is_large = len(body) > LARGE_BYTES
        if fault := await asyncio.to_thread(_duplicate_name, body) if is_large else _duplicate_name(body):
            answer = {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID_REQUEST, "message": fault}}
            await JSONResponse(answer, status_code=422)(scope, receive, send)
            return
        scope[SCOPE_CONTEXT] = scope["app"].state.context
        assert self._started is not None, "requests come while the API runs"
        self._wanted.set()
        application = await asyncio.shield(self._started)
        await application(scope, _again(body, receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for who reads it next."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return left.pop() if left else await receive()

    return received


def _loaded(max_body_bytes: int) -> AbstractAsyncContextManager[ASGIApp]:
    from app.mcp.server import mcp_application  # noqa: PLC0415 - 0.6 s of CPU and 24 MB

    return mcp_application(max_body_bytes)


def _duplicate_name(body: bytes) -> str:
    """What is wrong with a body in which a name stands twice; empty: nothing, or what is wrong is the library's to say.
    An argument may be JSON in a string, which the library reads as JSON."""
    try:
        message = loads(body)
        arguments = message["params"]["arguments"]
        for name, value in arguments.items():
            if isinstance(value, str) and value.lstrip().startswith(("{", "[")) and (place := _place_in(value)):
                raise DuplicateName(name, f"params.arguments.{name}.{place}")
    except DuplicateName as error:
        return str(error)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        pass
    return ""


def _place_in(text: str) -> str:
    try:
        return place_of_duplicate(text)
    except (ValueError, RecursionError):
        return ""
