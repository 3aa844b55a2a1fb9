"""Remove a text from the agent's memory."""

from uuid import UUID

from pydantic import Field

from worker.memory.base import AgentMemory
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult


class ForgetArguments(ToolArguments):
    id: UUID = Field(strict=False, description="As remember and recall print it.")


class Forget(Tool):
    name = "forget"
    description = "Remove a text from this agent's memory. One that is not there is no error."
    arguments = ForgetArguments
    repeatable = True
    risk = Risk.MEDIUM

    def __init__(self, memory: AgentMemory) -> None:
        self._memory = memory

    async def run(self, arguments: ForgetArguments, context: ToolContext) -> ToolResult:
        await context.about_to_change()
        if await self._memory.forget(context.call.user_id, context.agent, str(arguments.id)):
            context.output(f"forgot {arguments.id}\n".encode())
        else:
            context.output(f"there was no {arguments.id}\n".encode())
        return ToolResult()
