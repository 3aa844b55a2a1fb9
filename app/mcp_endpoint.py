"""What stands at /mcp: lets in whoever has a token, and starts the MCP server when somebody asks for it.

The server's library is a third of all that the API would have to load before it is up, and most platforms never need
it; so it is loaded by the first call, beside what else the API does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth import SCOPE_USER
from app.errors import problem
from backplane.errors import Unauthenticated
from backplane.tasks import end

SCOPE_SERVICES = "agent.services"


class McpEndpoint:
    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._wanted = asyncio.Event()
        self._started: asyncio.Future[ASGIApp] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For as long as the API runs."""
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
            loaded: Any = await asyncio.to_thread(import_module, "app.mcp_server")
            async with loaded.mcp_application(self._max_body_bytes) as application:
                started.set_result(application)
                await asyncio.Event().wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if SCOPE_USER not in scope:
            raise Unauthenticated("send the header `Authorization: Bearer TOKEN`")
        if scope["method"] == "GET":
            # Such a stream would only hold a connection: without sessions there is nothing that the server could send.
            detail = "this server sends nothing by itself; follow a run by the tool follow_run, or by GET /agent/events"
            await problem(405, "method_not_allowed", detail, headers={"Allow": "POST"})(scope, receive, send)
            return
        scope[SCOPE_SERVICES] = scope["app"].state.services
        assert self._started is not None, "requests come while the API runs"
        self._wanted.set()
        application = await asyncio.shield(self._started)
        await application(scope, receive, send)
