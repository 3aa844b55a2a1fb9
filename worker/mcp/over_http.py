"""An MCP server over HTTP (Streamable HTTP), by the official client.

What it sends goes through the platform's egress like all that a tool sends: to the one host that the operator named, at
an address that was checked. The client speaks another HTTP library than the rest of the platform does, so there is a
bridge between the two here; it also bounds what a server may send.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import httpx2
import structlog
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from backplane.egress import OutsidePolicy
from backplane.errors import InvalidInput, PlatformError, Unavailable
from backplane.hosts import host_and_port
from backplane.retry import retry_after
from backplane.secrets import SECRET_REFERENCE
from backplane.sizes import shortened
from worker.mcp.connection import (
    NOT_TAKEN,
    PAGES_MAX,
    BeforeCall,
    CallNotTaken,
    McpConnection,
    RemoteResult,
    RemoteTool,
    result_from,
    tools_from,
    unavailable,
)
from worker.mcp.servers import McpServer
from worker.tools.base import Effect, Secrets, ToolContext
from worker.tools.request_progress import RequestProgress

log = structlog.get_logger()


class HttpConnection(McpConnection):
    """`max_bytes` of all answers of one connection; `timeout_seconds` for the whole of it."""

    def __init__(
        self,
        server: McpServer,
        policy: OutsidePolicy,
        secrets: Secrets,
        *,
        timeout_seconds: float,
        max_bytes: int,
    ) -> None:
        assert server.url is not None
        self._server = server
        self._url = server.url
        self._policy = policy
        self._secrets = secrets
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes

    async def list_tools(self, context: ToolContext) -> list[RemoteTool]:
        async with self._connected() as client:
            pages = await _pages(client)
        if pages[-1].get("nextCursor"):
            log.warning("an MCP server's list of tools has no end", server=self._server.name, pages=len(pages))
        return tools_from(self._server.name, [page["tools"] for page in pages])

    async def call(
        self, tool: str, arguments: Mapping[str, Any], context: ToolContext, before_call: BeforeCall
    ) -> RemoteResult:
        calls, stopped = _Calls(), list[Exception]()
        try:
            async with self._connected(calls) as client:
                try:
                    await before_call()
                except Exception as error:
                    # The client would make another error of it.
                    stopped.append(error)
                else:
                    answer = await _answer(client, tool, arguments, calls)
        except Unavailable as error:
            if calls.was_not_taken:
                raise CallNotTaken(
                    error.message, later=calls.may_be_taken_later, retry_after=calls.retry_after
                ) from None
            raise
        if stopped:
            raise stopped[0]
        return result_from(self._server.name, answer)

    @asynccontextmanager
    async def _connected(self, calls: "_Calls | None" = None) -> AsyncIterator[Client]:
        url = self._policy.check(self._url)
        has_secrets = any(map(SECRET_REFERENCE.search, self._server.headers.values()))
        if has_secrets and url.scheme != "https" and not self._policy.allow_private:
            raise InvalidInput(f"MCP_SERVERS.{self._server.name}: secrets are sent by https only", field="MCP_SERVERS")
        host = host_and_port(url)
        headers = {name: await self._secrets.fill(value, host=host) for name, value in self._server.headers.items()}
        transport = _Bridge(self._policy.transport(), self._max_bytes, calls or _Calls())
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                httpx2.AsyncClient(transport=transport, headers=headers, timeout=None) as http,
                Client(
                    streamable_http_client(self._url, http_client=http, max_sse_event_size=self._max_bytes)
                ) as client,
            ):
                yield client
        except TimeoutError:
            raise unavailable(
                self._server.name, f"did not answer within {self._timeout_seconds:g} s (MCP_TIMEOUT_SECONDS)"
            ) from None
        except MCPError as error:
            raise unavailable(self._server.name, f"refuses: {shortened(str(error), 300)}") from None
        except (httpx.HTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
            raise unavailable(self._server.name, _words(error)) from None
        except BaseExceptionGroup as group:
            raise _from_group(self._server.name, group) from None


async def _pages(client: Client) -> list[dict[str, Any]]:
    """Of the list of tools: all that there are, up to PAGES_MAX or one that leads back."""
    pages: list[dict[str, Any]] = []
    seen: set[str] = set()
    cursor: str | None = None
    while True:
        pages.append((await client.list_tools(cursor=cursor)).model_dump(by_alias=True, mode="json"))
        cursor = pages[-1].get("nextCursor")
        if not cursor or cursor in seen or len(pages) >= PAGES_MAX:
            return pages
        seen.add(cursor)


async def _answer(client: Client, tool: str, arguments: Mapping[str, Any], calls: "_Calls") -> Any:
    # The library would ask for the list of tools after the call, and raise where the answer is not as the tool's output
    # schema has it: a call that was made would have failed.
    client.session.validate_tool_result = _any_result  # type: ignore[method-assign]
    try:
        return (await client.call_tool(tool, dict(arguments))).model_dump(by_alias=True, mode="json")
    except MCPError as error:
        calls.refused(error.code)
        raise


async def _any_result(name: str, result: Any) -> None:
    pass


def _words(error: BaseException) -> str:
    """What an error of the libraries means. Those that name the request are not shown: it holds secrets."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])[:100]
        return f"answers in a form that is none: {where}: {shortened(fault['msg'], 200)}"
    if isinstance(error, RuntimeError):
        return f"cannot be used: {shortened(str(error), 300)}"
    return f"cannot be reached ({type(error).__name__})"


def _from_group(server: str, group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a task group of the client ended with: an error of ours as it is, a cancel as a cancel."""
    leaves = list(_leaves(group))
    for leaf in leaves:
        if isinstance(leaf, PlatformError | asyncio.CancelledError):
            return leaf
        if isinstance(leaf, MCPError):
            return unavailable(server, f"refuses: {shortened(str(leaf), 300)}")
    return unavailable(server, _words(leaves[0]))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found


class _Calls:
    """How far the call of a tool came: what the client makes of a failure does not tell."""

    def __init__(self) -> None:
        self._progress: RequestProgress | None = None
        self._is_refused = False
        self._status = 0
        self.retry_after: float | None = None

    def begins(self) -> RequestProgress:
        self._progress = RequestProgress()
        return self._progress

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self.retry_after = retry_after(headers, datetime.now(UTC)) if self.may_be_taken_later else None

    def refused(self, code: int) -> None:
        """An error of JSON-RPC. The client itself makes others of these codes than those that are named here."""
        self._is_refused = self._status == 200 and code in NOT_TAKEN

    @property
    def was_not_taken(self) -> bool:
        """There was a call, and the tool was not called by it."""
        return self._progress is not None and (self._is_refused or self._progress.effect is Effect.NONE)

    @property
    def may_be_taken_later(self) -> bool:
        """It did not arrive, or came too often."""
        return self._status in (0, 425, 429)


class _Bridge(httpx2.AsyncBaseTransport):
    """A transport of the one library as a transport of the other."""

    def __init__(self, inner: httpx.AsyncBaseTransport, max_bytes: int, calls: _Calls) -> None:
        self._inner = inner
        self._left = max_bytes
        self._calls = calls

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        timeout = request.extensions.get("timeout")
        extensions: dict[str, Any] = {"timeout": timeout} if timeout else {}
        progress = self._calls.begins() if _is_call(body) else None
        if progress is not None:
            extensions["trace"] = progress.trace
        sent = httpx.Request(
            request.method, str(request.url), headers=request.headers.raw, content=body, extensions=extensions
        )
        answer = await self._inner.handle_async_request(sent)
        if progress is not None:
            progress.answered(answer.status_code)
            self._calls.answered(answer.status_code, answer.headers)
        return httpx2.Response(answer.status_code, headers=answer.headers.raw, stream=_Body(answer, self._count))

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise httpx2.ReadError("the server sends more than OUTSIDE_MAX_BYTES")

    async def aclose(self) -> None:
        await self._inner.aclose()


def _is_call(body: bytes) -> bool:
    """Whether it is the client's request to call a tool."""
    try:
        return bool(json.loads(body).get("method") == "tools/call") if body else False
    except (ValueError, AttributeError):
        return False


class _Body(httpx2.AsyncByteStream):
    def __init__(self, answer: httpx.Response, count: Any) -> None:
        self._answer = answer
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._answer.stream:  # type: ignore[union-attr]
            self._count(len(chunk))
            yield chunk

    async def aclose(self) -> None:
        await self._answer.aclose()
