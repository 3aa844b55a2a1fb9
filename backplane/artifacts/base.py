"""The artifacts port: files that an agent keeps from run to run, with every change of them kept for administrators.

An agent (a name of its user's) sees the present files and nothing else. What was before, and going back to it, is for
administrators. The files are few and small: a notebook, a script, a table; what is large belongs into a workspace.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AgentId:
    user_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """`size` is in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Author:
    """On whose behalf something is changed: a step of a run, or an administrator by name (`run_id` is empty then)."""

    run_id: str = ""
    step_id: str = ""
    administrator: str = ""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One entry of the history. `commit` is its id: 40 hexadecimal digits. `summary` says what was done."""

    commit: str
    at: datetime
    summary: str
    author: Author


class Artifacts(ABC):
    """Every method raises Unavailable when the files cannot be reached, and InvalidInput for a name that no agent has.

    Each change is whole or not at all, for all processes that use the same store, also when one is killed in it.
    """

    max_bytes: int
    """All files of an agent together."""

    @abstractmethod
    async def files(self, agent: AgentId) -> list[Artifact]:
        """The present files by path; none for an agent that has never written."""

    @abstractmethod
    async def read(self, agent: AgentId, path: str) -> bytes:
        """Raises InvalidPath, NotFound."""

    @abstractmethod
    async def write(self, agent: AgentId, path: str, data: bytes, author: Author) -> bool:
        """Whether it changed anything: a file that is so already is left as it is, without an entry in the history.

        Raises InvalidPath, TooLarge for a quota, Conflict where a file would have to be a folder too."""

    @abstractmethod
    async def delete(self, agent: AgentId, path: str, author: Author) -> bool:
        """Whether there was such a file. Raises InvalidPath."""

    @abstractmethod
    async def log(self, agent: AgentId, *, before: str | None = None, limit: int = 50) -> list[HistoryEntry]:
        """Newest first, those older than the commit `before`. Raises NotFound for an agent or commit that is not
        there."""

    @abstractmethod
    async def files_at(self, agent: AgentId, commit: str) -> list[Artifact]:
        """The files as they were after this commit. Raises NotFound."""

    @abstractmethod
    async def read_at(self, agent: AgentId, commit: str, path: str) -> bytes:
        """A file as it was then. Raises InvalidPath, NotFound."""

    @abstractmethod
    async def roll_back(self, agent: AgentId, commit: str, author: Author) -> str | None:
        """Make the files what they were after this commit, as a new entry in the history; its commit, or None when
        they are so already. Quotas do not hold for this. Raises NotFound."""
