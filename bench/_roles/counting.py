"""A role whose turns count and do nothing else, for `bench.agents`."""

from worker.roles import Agent, Message, Role


class Counting(Role):
    async def on_message(self, message: Message, agent: Agent) -> int:
        agent.state["count"] = agent.state.get("count", 0) + 1
        return int(agent.state["count"])
