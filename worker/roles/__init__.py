"""Roles of agents: what a package that offers roles imports (docs/roles.md).

from worker.roles import Agent, Message, Role

class Greeter(Role):
    async def on_message(self, message: Message, agent: Agent) -> str: ...
"""

from worker.handlers.run import StepError, ToolOutput
from worker.roles.role import AgentMessage as Message
from worker.roles.role import Role
from worker.roles.turn import AgentTurn as Agent

__all__ = ["Agent", "Message", "Role", "StepError", "ToolOutput"]
