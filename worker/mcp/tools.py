"""Tools of MCP servers as tools of a run: `{server}__{tool}`, under the policy that the operator wrote for the server.

A server may say anything of its tools; it decides about nothing. Their risk, whether a call may be repeated and which
of them there are is the operator's entry; arguments are checked against the server's schema before it is asked, so that
a plan is refused before its first step.
"""

import json
from collections.abc import Sequence

import structlog

from backplane.domain.runs import RunError
from backplane.input.argument_schemas import are_usable
from backplane.input.parsing import Parser
from worker.mcp.connection import CallNotTaken, McpConnection, RemoteTool
from worker.mcp.servers import McpServer
from worker.tools.base import Effect, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.by_schema import arguments_of
from worker.tools.names import plan_names

TOOLS_MAX = 100
"""Of a server, in a run: each is in every prompt of an agent that may call it."""
NAMES_LOGGED = 10

log = structlog.get_logger()


async def tools_of(
    server: McpServer, remote: Sequence[RemoteTool], connection: McpConnection, parser: Parser, user_id: str
) -> list[Tool]:
    """Those that runs may use and that can be offered: with a schema that is one. Of those with the same name, the
    first. A name that a plan cannot have is changed (`worker.tools.names`); the entry's names are the server's own.
    Raises InvalidInput when the schemas together take too long to check."""
    allowed = list(
        {tool.name: tool for tool in reversed(remote) if server.tools is None or tool.name in server.tools}.values()
    )[::-1]
    schemas = [tool.schema for tool in allowed]
    chars = sum(len(json.dumps(schema)) for schema in schemas)
    usable = await parser.call(user_id, f"what the MCP server {server.name} offers", chars, are_usable, schemas)
    good = [tool for tool, is_usable in zip(allowed, usable, strict=True) if is_usable]
    left_out = [tool.name for tool in (*good[TOOLS_MAX:], *(tool for tool in allowed if tool not in good))]
    if left_out:
        log.warning(
            "an MCP server offers tools that no run can have",
            server=server.name,
            count=len(left_out),
            names=left_out[:NAMES_LOGGED],
        )
    names = plan_names(f"{server.name}__{tool.name}" for tool in good[:TOOLS_MAX])
    return [_tool(server, tool, names[f"{server.name}__{tool.name}"], connection) for tool in good[:TOOLS_MAX]]


def _tool(server: McpServer, remote: RemoteTool, full_name: str, connection: McpConnection) -> Tool:
    may_repeat = remote.name in server.repeatable

    class McpTool(Tool):
        name = full_name
        description = _description(server, remote, full_name)
        arguments = arguments_of(remote.schema)
        repeatable = may_repeat
        risk = server.risk
        # A program runs in the sandbox, and what that lets it reach is the sandbox's.
        changes_outside = True if server.url is not None else None
        announces_changes = server.url is not None

        async def run(self, arguments: ToolArguments, context: ToolContext) -> ToolResult:
            async def before_call() -> None:
                if server.url is not None and not may_repeat:
                    # Nobody knows what it does out there: from here on it may have happened.
                    await context.about_to_change()

            try:
                answer = await connection.call(remote.name, arguments.model_dump(), context, before_call)
            except CallNotTaken as error:
                failed = RunError(error.code, error.message, error.later, retry_after=error.retry_after)
                return ToolResult(1, error=failed, effect=Effect.NONE)
            context.output(answer.text.encode("utf-8", "replace") + (b"" if answer.text.endswith("\n") else b"\n"))
            if answer.is_error:
                return ToolResult(
                    1, error=RunError("mcp_tool_failed", f"{full_name} says that it failed; see its output")
                )
            return ToolResult()

    return McpTool()


def _description(server: McpServer, remote: RemoteTool, full_name: str) -> str:
    words = remote.description or f"{remote.name} of the MCP server {server.name}."
    return words if full_name.endswith(remote.name) else f"{words} (The server calls it {remote.name}.)"
