"""Find texts in the agent's memory."""

import json

from pydantic import Field

from worker.memory.base import AgentMemory
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.remember import MAX_TAGS, Tag

MAX_RECALLED = 50


class RecallArguments(ToolArguments):
    query: str = Field(min_length=1, description="What it should speak of.")
    limit: int = Field(5, ge=1, le=MAX_RECALLED)
    tags: list[Tag] = Field([], max_length=MAX_TAGS, description="Only texts that have all of these.")


class Recall(Tool):
    name = "recall"
    description = "Print the texts of this agent's memory that are nearest to a query, one JSON object a line."
    arguments = RecallArguments
    repeatable = True
    read_only = True

    def __init__(self, memory: AgentMemory) -> None:
        self._memory = memory

    async def run(self, arguments: RecallArguments, context: ToolContext) -> ToolResult:
        call = context.call
        found = await self._memory.recall(
            call.user_id, context.agent, arguments.query, arguments.tags, arguments.limit, run_id=call.run_id
        )
        for memory in found:
            line = {
                "id": memory.id,
                "score": round(memory.score, 3),
                "text": memory.text,
                "tags": memory.tags,
                "at": memory.at,
            }
            context.output(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        if not found:
            context.output(b"nothing is remembered of that\n")
        return ToolResult()
