"""The one place where the agents' memory is chosen. Its library costs a second of CPU and 46 MB, so it is
loaded when a run first remembers or recalls something."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backplane.process.tasks import in_thread
from backplane.settings import Settings, fixed
from worker.memory.base import AgentMemory, Memory

if TYPE_CHECKING:
    from worker.llm.embedding import Embedder


def memory_of(settings: Settings, embedder: "Embedder") -> AgentMemory | None:
    """The memory that the settings name: a Qdrant server, else a folder; None where there is neither."""
    if not settings.qdrant_url and not settings.memory_dir:
        return None
    return _WhenUsed(settings, embedder)


class _WhenUsed(AgentMemory):
    def __init__(self, settings: Settings, embedder: "Embedder") -> None:
        self._settings = settings
        self._embedder = embedder
        self._loading = asyncio.Lock()
        self._memory: AgentMemory | None = None

    async def remember(self, user_id: str, agent: str, text: str, tags: Sequence[str], *, run_id: str) -> str:
        return await (await self._loaded()).remember(user_id, agent, text, tags, run_id=run_id)

    async def recall(
        self, user_id: str, agent: str, query: str, tags: Sequence[str], limit: int, *, run_id: str
    ) -> list[Memory]:
        return await (await self._loaded()).recall(user_id, agent, query, tags, limit, run_id=run_id)

    async def forget(self, user_id: str, agent: str, id: str) -> bool:
        return await (await self._loaded()).forget(user_id, agent, id)

    async def close(self) -> None:
        if self._memory is not None:
            await self._memory.close()

    async def _loaded(self) -> AgentMemory:
        async with self._loading:
            if self._memory is None:
                self._memory = await in_thread(_open, self._settings, self._embedder)
            return self._memory


def _open(settings: Settings, embedder: "Embedder") -> AgentMemory:
    from worker.memory.qdrant import QdrantFolder, QdrantMemory, QdrantServer  # noqa: PLC0415 - 1.2 s of CPU and 46 MB

    where = (
        QdrantServer(
            settings.qdrant_url,
            settings.qdrant_api_key.get_secret_value(),
            timeout_seconds=fixed.MEMORY_TIMEOUT_SECONDS,
        )
        if settings.qdrant_url
        else QdrantFolder(Path(settings.memory_dir), wait_seconds=fixed.MEMORY_TIMEOUT_SECONDS)
    )
    return QdrantMemory(where, embedder, max_items=settings.memory_max_items, max_chars=fixed.MEMORY_MAX_CHARS)
