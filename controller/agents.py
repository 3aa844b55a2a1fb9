"""What agents need beside their turns: messages whose time is up, and turns that nobody ends or opens.

All is found in the database, and each change is one short transaction that looks again, so any number of controllers
may do it at once, and one that is killed in between leaves nothing half done. It places no agent without something
to do, and starts no process: that is for the manager of pools.
"""

import structlog

from backplane.domain.agents import agent_terminated, message_expired
from backplane.run_actions.actions import RunActions
from backplane.settings import fixed
from backplane.store import Store
from controller.batches import repeat_batches

log = structlog.get_logger()


class AgentsLoop:
    def __init__(self, store: Store, actions: RunActions) -> None:
        self._store = store
        self._actions = actions

    async def run(self) -> None:
        await repeat_batches(self.work, what="agents", pause_seconds=fixed.AGENT_REPAIR_SECONDS)

    async def work(self) -> bool:
        """One batch of each kind. Returns whether there may be more. Raises Unavailable."""
        repair, batch = self._store.agent_repair, fixed.AGENT_REPAIR_BATCH
        expired = await repair.expired(batch)
        for run_id in expired:
            await self._actions.end_message(run_id, message_expired())
        left_behind = await repair.left_behind(batch)
        for run_id in left_behind:
            await self._actions.end_message(run_id, agent_terminated())
        broken = await repair.broken(batch)
        for agent_id in broken:
            opened = await repair.repair(agent_id)
            log.warning("the next message of an agent had not been opened", agent=agent_id, opened=opened)
            await self._actions.push_message_of(agent_id)
        return batch in (len(expired), len(left_behind), len(broken))
