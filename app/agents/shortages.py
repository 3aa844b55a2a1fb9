"""Why pools have fewer processes than their agents need, as whoever starts processes reports it in Redis."""

from dataclasses import replace

from backplane.agents.base import AgentRegistry
from backplane.domain.agent_situation import AgentSituation
from backplane.errors import Unavailable


async def shortages(registry: AgentRegistry) -> dict[str, str]:
    """By pool; none while Redis is away, for the answer is of use without them."""
    try:
        return await registry.shortages()
    except Unavailable:
        return {}


async def with_shortage(registry: AgentRegistry, situation: AgentSituation) -> AgentSituation:
    """The situation with the reason why no process comes, where the agent has none."""
    if situation.has_live_process:
        return situation
    return replace(situation, shortage=(await shortages(registry)).get(situation.pool.name))
