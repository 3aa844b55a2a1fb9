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
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from backplane.egress import OutsidePolicy
from backplane.errors import InvalidInput, PlatformError
from backplane.hosts import host_and_port
from backplane.secrets import SECRET_REFERENCE
from worker.mcp.connection import McpConnection, RemoteResult, RemoteTool, result_from, tools_from, unavailable
from worker.mcp.servers import McpServer
from worker.tools.base import Secrets, ToolContext


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
            listed = (await client.list_tools()).model_dump(by_alias=True, mode="json")
        return tools_from(self._server.name, listed["tools"])

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext) -> RemoteResult:
        async with self._connected() as client:
            answer = (await client.call_tool(tool, dict(arguments))).model_dump(by_alias=True, mode="json")
        return result_from(self._server.name, answer)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        url = self._policy.check(self._url)
        has_secrets = any(map(SECRET_REFERENCE.search, self._server.headers.values()))
        if has_secrets and url.scheme != "https" and not self._policy.allow_private:
            raise InvalidInput(f"MCP_SERVERS.{self._server.name}: secrets are sent by https only", field="MCP_SERVERS")
        host = host_and_port(url)
        headers = {name: await self._secrets.fill(value, host=host) for name, value in self._server.headers.items()}
        transport = _Bridge(self._policy.transport(), self._max_bytes)
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                httpx2.AsyncClient(transport=transport, headers=headers, timeout=None) as http,
                Client(streamable_http_client(self._url, http_client=http)) as client,
            ):
                yield client
        except TimeoutError:
            raise unavailable(
                self._server.name, f"did not answer within {self._timeout_seconds:g} s (MCP_TIMEOUT_SECONDS)"
            ) from None
        except MCPError as error:
            raise unavailable(self._server.name, f"refuses: {str(error)[:300]}") from None
        except (httpx.HTTPError, httpx2.HTTPError, OSError, ValueError) as error:
            raise unavailable(self._server.name, f"cannot be reached ({type(error).__name__})") from None
        except BaseExceptionGroup as group:
            raise _from_group(self._server.name, group) from None


def _from_group(server: str, group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a task group of the client ended with: an error of ours as it is, a cancel as a cancel."""
    leaves = list(_leaves(group))
    for leaf in leaves:
        if isinstance(leaf, PlatformError | asyncio.CancelledError):
            return leaf
    return unavailable(server, f"cannot be reached ({type(leaves[0]).__name__})")


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found


class _Bridge(httpx2.AsyncBaseTransport):
    """A transport of the one library as a transport of the other."""

    def __init__(self, inner: httpx.AsyncBaseTransport, max_bytes: int) -> None:
        self._inner = inner
        self._left = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        timeout = request.extensions.get("timeout")
        extensions = {"timeout": timeout} if timeout else {}
        sent = httpx.Request(
            request.method, str(request.url), headers=request.headers.raw, content=body, extensions=extensions
        )
        answer = await self._inner.handle_async_request(sent)
        return httpx2.Response(answer.status_code, headers=answer.headers.raw, stream=_Body(answer, self._count))

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise httpx2.ReadError("the server sends more than OUTSIDE_MAX_BYTES")

    async def aclose(self) -> None:
        await self._inner.aclose()


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
