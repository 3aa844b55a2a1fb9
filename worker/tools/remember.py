"""Keep a text in the agent's memory."""

from typing import Annotated

from pydantic import Field

from worker.memory.base import AgentMemory
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult

MAX_TAGS = 20

Tag = Annotated[str, Field(min_length=1, max_length=64)]


class RememberArguments(ToolArguments):
    text: str = Field(min_length=1, description="What to keep: one fact, in words that will be searched for.")
    tags: list[Tag] = Field([], max_length=MAX_TAGS)


class Remember(Tool):
    name = "remember"
    description = "Keep a text in this agent's memory, for later runs. The same text again replaces its tags."
    arguments = RememberArguments
    repeatable = True
    risk = Risk.MEDIUM

    def __init__(self, memory: AgentMemory) -> None:
        self._memory = memory

    async def run(self, arguments: RememberArguments, context: ToolContext) -> ToolResult:
        await context.about_to_change()
        call = context.call
        id = await self._memory.remember(
            call.user_id, context.agent, arguments.text, arguments.tags, run_id=call.run_id
        )
        context.output(f"remembered as {id}\n".encode())
        return ToolResult()
