"""The memory port: short texts that an agent keeps from run to run and finds again by their meaning.

An agent (a name of its user's) has a memory of its own, and can name no other. What it once wrote is data for its later
readers: it may come from a page or a file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Memory:
    """`score` is how near it is to what was asked for: 1 is the same. `at` is an ISO 8601 time, and `run_id` the run
    that wrote it."""

    id: str
    text: str
    tags: tuple[str, ...]
    at: str
    run_id: str
    score: float


class AgentMemory(ABC):
    """Every method raises Unavailable (part memory) where it cannot be reached, and ModelError where a text cannot be
    embedded."""

    @abstractmethod
    async def remember(self, user_id: str, agent: str, text: str, tags: Sequence[str], *, run_id: str) -> str:
        """The memory's id, which comes from its text: the same text replaces what it said before.

        Raises TooLarge for a text that is too long or one too many, Conflict where other embeddings are kept."""

    @abstractmethod
    async def recall(
        self, user_id: str, agent: str, query: str, tags: Sequence[str], limit: int, *, run_id: str
    ) -> list[Memory]:
        """The memories nearest to the text, the nearest first, of those that have all the tags. Raises TooLarge and
        Conflict as above."""

    @abstractmethod
    async def forget(self, user_id: str, agent: str, id: str) -> bool:
        """Remove a memory. Returns whether there was one. `id` is a UUID."""

    @abstractmethod
    async def close(self) -> None: ...
