"""What is known of an agent at one moment: what it does, what waits for it, and the processes that could have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from backplane.domain.agents import Agent, AgentStatus, Occupancy, Pool
from backplane.domain.runs import Run


@dataclass(frozen=True, slots=True)
class AgentSituation:
    """`waiting`: messages in the mailbox. `open_run`: the message that is open. `processes`: those of the pool, also
    those whose lease is over. `at`: the database's time. `shortage`: why the pool has fewer processes than its agents
    need, where whoever starts them has reported it. `failed_run`: its last turn, where that has failed and none is
    open. `asked`: names of the agents whose answer its open turn waits for."""

    agent: Agent
    status: AgentStatus
    pool: Pool
    processes: Sequence[Occupancy]
    open_run: Run | None
    waiting: int
    at: datetime
    shortage: str | None = None
    failed_run: Run | None = None
    asked: Sequence[str] = ()

    @property
    def live(self) -> list[Occupancy]:
        return [one for one in self.processes if one.process.lease_until > self.at]

    @property
    def has_live_process(self) -> bool:
        return any(one.process.id == self.agent.process_id for one in self.live)


@dataclass(frozen=True, slots=True)
class MailboxPlace:
    """Where a message stands in the mailbox of its agent. `ahead`: how many messages there come before it."""

    ahead: int
    situation: AgentSituation
