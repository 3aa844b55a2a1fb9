"""GET /agent/tools: what a step can use, with the schemas of its arguments."""

from typing import Annotated

from fastapi import Path

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.tools import McpServerView, ToolList, ToolView
from backplane.domain.validation_messages import near
from backplane.errors import NotFound

router = Operations(tags=["tools"])


@router.get("/agent/tools", responses=responses())
async def list_tools(_: CurrentUser, context: ContextOf) -> ToolList:
    """The tools that live workers have, and the MCP servers that a run may name."""
    known = await context.known_tools.known(at_most_seconds_old=0)
    servers = context.settings.mcp_servers
    return ToolList(
        tools=[ToolView.of(versions[0]) for _, versions in sorted(known.tools.items())],
        mcp_servers=[McpServerView(name=name, tools=entry.get("tools")) for name, entry in sorted(servers.items())],
        complete=known.is_whole,
    )


@router.get("/agent/tools/{name}", responses=responses(404, 422))
async def show_tool(
    name: Annotated[str, Path(min_length=1, max_length=64, description="Of a tool.")],
    _: CurrentUser,
    context: ContextOf,
) -> ToolView:
    """One tool. Where workers have it in several versions, as the one that came last has it."""
    known = await context.known_tools.known(at_most_seconds_old=0)
    if name not in known.tools:
        raise NotFound(f"no live worker has a tool {name!r}{near(name, known.tools)}")
    return ToolView.of(known.tools[name][0])
