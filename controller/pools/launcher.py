"""The port to what starts processes of pools, where an operator does not do it by hand."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from backplane.domain.agents import Pool, PoolProcess


class Launcher(ABC):
    drains_first = True
    """Whether a process that is to end is made to drain by a command; else it is asked by a signal."""

    @abstractmethod
    async def coming(self, pool: str, entered: Sequence[PoolProcess]) -> int:
        """How many processes of the pool were started and are not among those that have entered themselves. Raises
        Unavailable."""

    @abstractmethod
    async def start(self, pool: Pool, count: int, wanted: int) -> None:
        """Start `count` processes, so that there are `wanted`. Raises Unavailable when that cannot be."""

    @abstractmethod
    async def end(self, pool: Pool, processes: Sequence[PoolProcess], wanted: int) -> None:
        """Let these end, so that `wanted` are left. Raises Unavailable."""

    @abstractmethod
    async def hindrance(self, pool: str) -> str | None:
        """What keeps processes that were started from entering themselves, in words for an operator; None: nothing
        that is known. Raises Unavailable."""

    @abstractmethod
    async def close(self) -> None:
        """End what was started here and cannot live without this process."""
