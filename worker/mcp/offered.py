"""What the MCP servers that a run names offer it, asked anew at each claim: a server may have changed meanwhile.

The libraries behind it cost a second of CPU and 29 MB, so they are loaded when a run first names a server.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from backplane.errors import InvalidInput
from backplane.net.egress import OutsidePolicy, parse_url
from backplane.net.hosts import host_and_port
from backplane.process.tasks import in_thread
from worker.mcp.connection import McpConnection
from worker.mcp.in_sandbox import SandboxedConnection
from worker.mcp.servers import McpServer
from worker.tools.base import Secrets, Tool, ToolContext

if TYPE_CHECKING:
    from worker.mcp.over_http import HttpConnection


class McpServers:
    """`allow_private`: let servers over HTTP be on private and loopback addresses (OUTSIDE_ALLOW_PRIVATE)."""

    def __init__(
        self, servers: Mapping[str, McpServer], *, allow_private: bool, timeout_seconds: float, max_bytes: int
    ) -> None:
        self._servers = servers
        self._allow_private = allow_private
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes

    async def tools(self, names: Iterable[str], context: ToolContext) -> list[Tool]:
        """All tools of these servers, which keep the context's secrets: what an entry of MCP_SERVERS names is the
        operator's word, not the step's. Programs are asked one after another, since they share the run's files. Raises
        InvalidInput for a server that is not configured, Unavailable for one that does not answer."""
        chosen = [self._server(name) for name in names]
        http_connection, as_tools = await in_thread(_load)
        connections = [self._connection(server, context.secrets, http_connection) for server in chosen]
        remote = [connection for server, connection in zip(chosen, connections, strict=True) if server.url]
        listed = dict(zip(remote, await asyncio.gather(*(one.list_tools(context) for one in remote)), strict=True))
        found: list[Tool] = []
        for server, connection in zip(chosen, connections, strict=True):
            offered = listed[connection] if connection in listed else await connection.list_tools(context)
            found += await as_tools(server, offered, connection, context.parser, context.call.user_id)
        return found

    def _server(self, name: str) -> McpServer:
        if name not in self._servers:
            there = ", ".join(self._servers) or "none"
            raise InvalidInput(f"mcp_servers: {name!r} is not configured here (MCP_SERVERS); there are: {there}")
        return self._servers[name]

    def _connection(self, server: McpServer, secrets: Secrets, over_http: "type[HttpConnection]") -> McpConnection:
        if server.url is None:
            return SandboxedConnection(
                server, secrets, timeout_seconds=self._timeout_seconds, max_bytes=self._max_bytes
            )
        # The operator has named this one host, so it need not stand in OUTSIDE_HOSTS as well.
        host = host_and_port(parse_url(server.url))
        policy = OutsidePolicy([host], allow_private=self._allow_private)
        return over_http(server, policy, secrets, timeout_seconds=self._timeout_seconds, max_bytes=self._max_bytes)


def _load() -> "tuple[type[HttpConnection], Callable[..., Awaitable[list[Tool]]]]":
    from worker.mcp.over_http import HttpConnection  # noqa: PLC0415 - 1.0 s of CPU and 27 MB
    from worker.mcp.tools import tools_of  # noqa: PLC0415 - 0.04 s and 2 MB

    return HttpConnection, tools_of
