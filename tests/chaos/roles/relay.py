"""The role of the agents in the chaos of mailboxes. Each keeps the sum of the values that it was sent, asks where it is
to, and passes on what it is to pass on. What a message asks for stands in its data (`tests.chaos.messages`)."""

from worker.roles import Agent, Message, Role


class Relay(Role):
    async def on_message(self, message: Message, agent: Agent) -> dict[str, int]:
        state, data = agent.state, message.data
        state["count"] = state.get("count", 0) + 1
        state["sum"] = state.get("sum", 0) + data["value"]
        if question := data["asks"]:
            answer = await agent.ask(question["agent"], question["place"], data=question)
            state["answers"] = state.get("answers", 0) + answer["value"]
        for following in data["passes_on"]:
            await agent.send(following["agent"], following["place"], data=following)
        return {"count": state["count"], "value": data["value"]}
