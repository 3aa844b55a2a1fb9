"""The registry of agents and their processes: a copy for operators, and the channel on which processes are called.

The database is the truth. Nothing decides by what is here, and whatever is lost comes back: each process writes itself
and its agents now and then, and a process that finds itself missing does so at once. Only agents that have a process
are in it: thousands that sleep cost nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from backplane.domain.agents import Agent, PoolProcess

LOOK = "agents"
"""The command to read anew which agents one has."""
DRAIN = "drain"
"""The command to take no agent any more, to finish what is running, and to end."""


@dataclass(frozen=True, slots=True)
class PoolCommand:
    """`process_id`: who is meant; empty: all processes of the pool."""

    name: str
    process_id: str = ""

    def is_for(self, process_id: str) -> bool:
        return self.process_id in ("", process_id)


class AgentRegistry(ABC):
    @abstractmethod
    async def ring(self, pool: str, process_id: str = "", command: str = LOOK) -> None:
        """Publish a command for a process of the pool, or for all. Never raises Unavailable: one that is lost is found
        in the database at the next heartbeat."""

    @abstractmethod
    def commands(self, pool: str) -> AbstractAsyncContextManager[AsyncIterator[PoolCommand]]:
        """The commands that are published while the context is open, and LOOK for all whenever some may have been
        missed. It reconnects by itself. `pool`: "*" for those of all pools."""

    @abstractmethod
    async def write(self, process: PoolProcess, agents: Sequence[Agent], *, gone: Sequence[str] = ()) -> None:
        """Write a process and its agents, for as long as a silent process stays in the registry. `gone`: ids of agents
        that it had and has no more; one that another process has written meanwhile stays. Raises Unavailable."""

    @abstractmethod
    async def is_known(self, process_id: str) -> bool:
        """Whether the process is in the registry. Raises Unavailable."""

    @abstractmethod
    async def mark_lost(self, process: PoolProcess) -> None:
        """The process has lost its lease: show that, until it has been silent for long enough to be removed. Raises
        Unavailable."""

    @abstractmethod
    async def remove(self, process: PoolProcess, agents: Sequence[str]) -> None:
        """Take out a process that ends, and those of these agents that it was the last to write. Raises
        Unavailable."""

    @abstractmethod
    async def tidy(self, pool: str) -> int:
        """Take what has been silent for too long out of the pool's lists. How many were taken out. Raises
        Unavailable."""

    @abstractmethod
    async def write_shortages(self, shortages: Mapping[str, str], *, keep_seconds: int) -> None:
        """Of each pool that has fewer processes than its agents need: why, in words for an operator. What was written
        before goes; what is written is kept for so long. Raises Unavailable."""

    @abstractmethod
    async def shortages(self) -> dict[str, str]:
        """What was written last. Raises Unavailable."""
