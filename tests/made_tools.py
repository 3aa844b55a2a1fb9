"""Tools that are never called: what follows from how a tool describes itself."""

from typing import Any

from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult


class _Tool(Tool):
    name = "any"
    description = "Any."
    arguments = ToolArguments

    async def run(self, arguments: Any, context: ToolContext) -> ToolResult:
        raise NotImplementedError


def tool(**attributes: Any) -> Tool:
    """With these attributes of its class: `tool(risk=Risk.HIGH)`."""
    made: Tool = type("Made", (_Tool,), attributes)()
    return made
