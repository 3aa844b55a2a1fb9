"""Artifacts in Git: a bare repository for each agent, below one folder that the API and all workers share.

Every operation opens the repository anew in a thread; what writes first takes the agent's file lock, so that writers in
other processes and machines wait for each other and none of them works on a state that is not the newest. Readers take
no lock: what a branch points to is whole. `repository` has what Git does; it is loaded when it is first needed, because
pygit2 costs a process 20 MB that never sees an artifact.
"""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backplane.artifacts.base import AgentId, Artifact, Artifacts, Author, HistoryEntry
from backplane.domain.runs import AGENT_PATTERN
from backplane.errors import InvalidInput, NotFound, PartRefuses, PlatformError, Unavailable
from backplane.process.file_lock import LockBusy, file_lock
from backplane.process.tasks import in_thread
from backplane.workspace.files import REFUSALS

if TYPE_CHECKING:
    from backplane.artifacts.repository import Repository

T = TypeVar("T")

_USER = re.compile(r"[A-Za-z0-9-]{1,64}")
_AGENT = re.compile(AGENT_PATTERN)


class GitArtifacts(Artifacts):
    """`max_bytes` is for an agent's present files, `history_max_bytes` for its repository's objects on disk.
    `wait_seconds`: how long a write waits for others of the same agent."""

    def __init__(self, folder: Path, *, max_bytes: int, history_max_bytes: int, wait_seconds: float) -> None:
        self.max_bytes = max_bytes
        self._folder = folder
        self._history_max_bytes = history_max_bytes
        self._wait_seconds = wait_seconds

    async def files(self, agent: AgentId) -> list[Artifact]:
        try:
            return await self._reading(agent, lambda repository: repository.files())
        except NotFound:
            return []

    async def read(self, agent: AgentId, path: str) -> bytes:
        return await self._reading(agent, lambda repository: repository.read(path))

    async def write(self, agent: AgentId, path: str, data: bytes, author: Author) -> bool:
        def write(repository: "Repository") -> bool:
            return repository.write(
                path,
                data,
                author,
                agent=agent.name,
                max_bytes=self.max_bytes,
                history_max=self._history_max_bytes,
            )

        return await self._writing(agent, write, create=True)

    async def delete(self, agent: AgentId, path: str, author: Author) -> bool:
        try:
            return await self._writing(agent, lambda repository: repository.delete(path, author, agent=agent.name))
        except NotFound:
            return False

    async def log(self, agent: AgentId, *, before: str | None = None, limit: int = 50) -> list[HistoryEntry]:
        return await self._reading(agent, lambda repository: repository.log(before, limit))

    async def files_at(self, agent: AgentId, commit: str) -> list[Artifact]:
        return await self._reading(agent, lambda repository: repository.files_at(commit))

    async def read_at(self, agent: AgentId, commit: str, path: str) -> bytes:
        return await self._reading(agent, lambda repository: repository.read_at(commit, path))

    async def roll_back(self, agent: AgentId, commit: str, author: Author) -> str | None:
        return await self._writing(agent, lambda repository: repository.roll_back(commit, author, agent=agent.name))

    async def _reading(self, agent: AgentId, action: "Callable[[Repository], T]") -> T:
        read = _opened(self._path(agent, ".git"), action, create=False)
        try:
            return await in_thread(read)
        except PartRefuses:
            # What a writer packed at this moment is in another file now; what is damaged is so the second time too.
            return await in_thread(read)

    async def _writing(self, agent: AgentId, action: "Callable[[Repository], T]", *, create: bool = False) -> T:
        path = self._path(agent, ".git")
        if not create and not await in_thread(path.exists):
            raise NotFound("this agent has no artifacts")
        async with self._locked(agent):
            return await in_thread(_opened(path, action, create=create))

    @asynccontextmanager
    async def _locked(self, agent: AgentId) -> AsyncIterator[None]:
        try:
            async with file_lock(self._path(agent, ".lock"), self._wait_seconds):
                yield
        except LockBusy:
            message = f"others write the artifacts of agent {agent.name} all the time"
            raise Unavailable(message, part="artifacts") from None
        except OSError as error:
            raise _unreachable(error) from error

    def _path(self, agent: AgentId, suffix: str) -> Path:
        if not _USER.fullmatch(agent.user_id) or not _AGENT.fullmatch(agent.name):
            raise InvalidInput(
                "an agent's name has at most 64 small letters, digits, '.', '_' and '-', and begins with no sign",
                field="agent",
            )
        return self._folder / agent.user_id / f"{agent.name}{suffix}"


def _opened(path: Path, action: "Callable[[Repository], T]", *, create: bool) -> Callable[[], T]:
    """For a thread: `action` with the repository, and what goes wrong in it in the platform's words."""

    def call() -> T:
        import pygit2  # noqa: PLC0415 - 0.08 s of CPU and 11 MB

        from backplane.artifacts.repository import Repository  # noqa: PLC0415 - 0 s after pygit2

        try:
            return action(Repository(path, create=create))
        except PlatformError:
            raise
        except OSError as error:
            raise _unreachable(error) from error
        except UnicodeError:
            raise
        except (pygit2.GitError, KeyError, ValueError) as error:
            # Git's own words name files, objects and nothing else.
            raise PartRefuses(
                f"the artifacts of this agent cannot be used: {error}. Look at {path.parent.name}/{path.name} in "
                "ARTIFACTS_DIR (git fsck), and put a backup in its place."
            ) from error

    return call


def _unreachable(error: OSError) -> Unavailable:
    return Unavailable(
        f"the artifacts cannot be used: {error}. Look at ARTIFACTS_DIR: is it there, and writable?",
        part="artifacts",
        refuses=error.errno in REFUSALS,
    )
