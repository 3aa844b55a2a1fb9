"""An MCP server over HTTP (Streamable HTTP), by the official client.

What it sends goes through the platform's egress like all that a tool sends: to the one host that the operator named, at
an address that was checked. The client speaks another HTTP library than the rest of the platform does, so there is a
bridge between the two here; it also bounds what a server may send.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import structlog
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from backplane.domain.secrets import SECRET_REFERENCE
from backplane.domain.sizes import shortened
from backplane.errors import InvalidInput, PlatformError, Unavailable
from backplane.net.egress import OutsidePolicy
from backplane.net.hosts import host_and_port
from worker.mcp.connection import (
    PAGES_MAX,
    BeforeCall,
    CallNotTaken,
    McpConnection,
    RemoteResult,
    RemoteTool,
    beginning_of,
    result_from,
    tools_from,
    unavailable,
)
from worker.mcp.http_bridge import NO_ANSWER, Bridge, Calls
from worker.mcp.servers import McpServer
from worker.tools.base import Secrets, ToolContext

_NOT_READ = "Failed to parse"
"""How the library begins what it says of an answer that is no JSON-RPC; it goes on for pages."""
SAME_CHARS = 40
"""By which the words of a server's error are found again in what it sent."""

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
        calls, stopped = Calls(), list[Exception]()
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
    async def _connected(self, calls: Calls | None = None) -> AsyncIterator[Client]:
        url = self._policy.check(self._url)
        has_secrets = any(map(SECRET_REFERENCE.search, self._server.headers.values()))
        if has_secrets and url.scheme != "https" and not self._policy.allow_private:
            raise InvalidInput(f"MCP_SERVERS.{self._server.name}: secrets are sent by https only", field="MCP_SERVERS")
        host = host_and_port(url)
        headers = {name: await self._secrets.fill(value, host=host) for name, value in self._server.headers.items()}
        # A body that is not compressed can be shown as it came.
        headers = {"Accept-Encoding": "identity", **headers}
        transport = Bridge(self._policy.transport(), self._max_bytes, calls or Calls())
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
            words = f"did not answer within {self._timeout_seconds:g} s (MCP_TIMEOUT_SECONDS)"
            raise unavailable(self._server.name, _with(words, transport.sent)) from None
        except (MCPError, httpx.HTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
            raise unavailable(self._server.name, _words(error, transport.sent)) from None
        except BaseExceptionGroup as group:
            raise _from_group(self._server.name, group, transport.sent) from None


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


async def _answer(client: Client, tool: str, arguments: Mapping[str, Any], calls: Calls) -> Any:
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


def _words(error: BaseException, sent: str) -> str:
    """What an error of the libraries means. Those that name the request are not shown: it holds secrets. `sent`: the
    beginning of the server's last answer, which is shown where it was no error in words."""
    if isinstance(error, MCPError):
        words = beginning_of(str(error))
        if words == NO_ANSWER or words.startswith(_NOT_READ):
            return _with("cannot be understood", sent)
        return (
            f"refuses: {shortened(str(error), 300)}"
            if words[:SAME_CHARS] in sent
            else _with(f"gave no answer: {words}", sent)
        )
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])[:100]
        return _with(f"answers in a form that is none: {where}: {shortened(fault['msg'], 200)}", sent)
    if isinstance(error, RuntimeError):
        return _with(f"cannot be used: {shortened(str(error), 300)}", sent)
    return f"cannot be reached ({type(error).__name__})"


def _with(words: str, sent: str) -> str:
    return f"{words}; it sent: {sent}" if sent else words


def _from_group(server: str, group: BaseExceptionGroup[BaseException], sent: str) -> BaseException:
    """What a task group of the client ended with: an error of ours as it is, a cancel as a cancel."""
    leaves = list(_leaves(group))
    for leaf in leaves:
        if isinstance(leaf, PlatformError | asyncio.CancelledError):
            return leaf
        if isinstance(leaf, MCPError):
            return unavailable(server, _words(leaf, sent))
    return unavailable(server, _words(leaves[0], sent))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found
