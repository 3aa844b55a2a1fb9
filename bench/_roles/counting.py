"""A role whose turns count and do nothing else, for `bench.agents`."""

from typing import Any

from worker.roles.role import AgentMessage, Role


class Counting(Role):
    async def on_message(self, message: AgentMessage, agent: Any) -> int:
        agent.state["count"] = agent.state.get("count", 0) + 1
        return int(agent.state["count"])
