"""All tools of a worker, from the settings: the built-in ones, those over memory and artifacts, and the plug-ins."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from backplane.artifacts.base import Artifacts
from backplane.settings import Settings
from worker.llm.embedding import Embedder
from worker.memory import memory_of
from worker.memory.base import AgentMemory
from worker.plugins import with_plugins
from worker.tools.artifact_delete import ArtifactDelete
from worker.tools.artifact_list import ArtifactList
from worker.tools.artifact_read import ArtifactRead
from worker.tools.artifact_write import ArtifactWrite
from worker.tools.forget import Forget
from worker.tools.recall import Recall
from worker.tools.registry import ToolRegistry
from worker.tools.remember import Remember

log = structlog.get_logger()


@asynccontextmanager
async def open_tools(
    settings: Settings, builtin: ToolRegistry, artifacts: Artifacts | None, embedder: Embedder
) -> AsyncIterator[ToolRegistry]:
    """All of them but TOOLS_DISABLED. Those of memory and artifacts are there when the settings name a place for what
    they keep. Raises PluginRefused."""
    memory = memory_of(settings, embedder)
    try:
        tools = with_plugins(builtin.with_tools([*_memory_tools(memory), *_artifact_tools(artifacts)]))
        if unknown := sorted(set(settings.tools_disabled) - set(tools.names)):
            log.warning("TOOLS_DISABLED names tools that are not there", tools=unknown)
        yield tools.without(settings.tools_disabled)
    finally:
        if memory is not None:
            await memory.close()


def _memory_tools(memory: AgentMemory | None) -> list[Remember | Recall | Forget]:
    return [Remember(memory), Recall(memory), Forget(memory)] if memory else []


def _artifact_tools(artifacts: Artifacts | None) -> list[ArtifactWrite | ArtifactRead | ArtifactList | ArtifactDelete]:
    if artifacts is None:
        return []
    return [ArtifactWrite(artifacts), ArtifactRead(artifacts), ArtifactList(artifacts), ArtifactDelete(artifacts)]
