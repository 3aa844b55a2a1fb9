"""All tools of a worker, from the settings: the built-in ones, agents, those that reach outside, those over memory and
artifacts, and the plug-ins."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint

import structlog

from backplane.artifacts.base import Artifacts
from backplane.errors import InvalidInput
from backplane.net.egress import OutsidePolicy
from backplane.settings import Settings, fixed
from backplane.store import DeploymentStore
from worker.llm.embedding import Embedder
from worker.memory import memory_of
from worker.memory.base import AgentMemory
from worker.tools.agent import AgentLimits, AgentTool
from worker.tools.artifact_delete import ArtifactDelete
from worker.tools.artifact_list import ArtifactList
from worker.tools.artifact_read import ArtifactRead
from worker.tools.artifact_write import ArtifactWrite
from worker.tools.base import Tool
from worker.tools.browser import Browser
from worker.tools.deployed_agent import DeployedAgent
from worker.tools.forget import Forget
from worker.tools.http_fetch import OutsideLimits, http_tools
from worker.tools.plugins import with_plugins
from worker.tools.recall import Recall
from worker.tools.registry import ToolRegistry, builtin_tools
from worker.tools.remember import Remember

log = structlog.get_logger()


@asynccontextmanager
async def open_tools(
    settings: Settings,
    plugins: Iterable[EntryPoint],
    artifacts: Artifacts | None,
    embedder: Embedder,
    deployments: DeploymentStore,
) -> AsyncIterator[ToolRegistry]:
    """All of them but TOOLS_DISABLED. `plugins`: of installed packages. Those of memory and artifacts are there when
    the settings name a place for what they keep, and that of deployments where something can be deployed. Raises
    PluginRefused."""
    memory = memory_of(settings, embedder)
    deployed = [DeployedAgent(deployments)] if settings.deploy_target else []
    try:
        tools = with_plugins(
            builtin_tools().with_tools(
                [_agent(settings), *_outside(settings), *deployed, *_memory_tools(memory), *_artifact_tools(artifacts)]
            ),
            plugins,
        )
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


def _outside(settings: Settings) -> list[Tool]:
    policy = policy_of(settings)
    tools: list[Tool] = [*http_tools(policy, limits_of(settings))]
    # Where neither is named, no sandbox is known to have a browser, and no planner should see the tool.
    if settings.browser_python or settings.browser_executable:
        tools.append(
            Browser(
                policy,
                python=settings.browser_python,
                executable=settings.browser_executable,
                max_bytes=settings.browser_max_bytes,
                timeout_seconds=settings.outside_timeout_seconds,
            )
        )
    return tools


def _agent(settings: Settings) -> AgentTool:
    return AgentTool(
        AgentLimits(
            turns=settings.agent_max_turns,
            tokens=settings.agent_max_tokens,
            usd=settings.agent_max_usd,
            seconds=settings.agent_max_seconds,
            result_chars=fixed.AGENT_RESULT_CHARS,
            output_tokens=settings.model_max_output_tokens,
            input_bytes=settings.model_max_input_bytes,
        )
    )


def policy_of(settings: Settings) -> OutsidePolicy:
    """Raises InvalidInput for a pattern in OUTSIDE_HOSTS that is none."""
    try:
        return OutsidePolicy(settings.outside_hosts, allow_private=settings.outside_allow_private)
    except InvalidInput as error:
        raise InvalidInput(f"OUTSIDE_HOSTS: {error.message}", field="OUTSIDE_HOSTS") from None


def limits_of(settings: Settings) -> OutsideLimits:
    return OutsideLimits(
        max_bytes=settings.outside_max_bytes,
        timeout_seconds=settings.outside_timeout_seconds,
        redirects=fixed.OUTSIDE_REDIRECTS,
    )
