"""What all executions of a worker process share, made of the settings once."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backplane.domain.budgets import RunBudget
from backplane.domain.stored import StorageQuota
from backplane.input.parsing import Parser
from backplane.resources import Resources, storage_quota
from backplane.sealing import Seal
from backplane.settings import Settings
from backplane.tool_catalogue.base import ToolSet
from backplane.workspace.quota import Quota
from worker.files.scratch import Scratch
from worker.llm.embedding import embedder_of
from worker.llm.gateway import ModelGateway, open_gateway
from worker.mcp.offered import McpServers
from worker.mcp.servers import servers_of
from worker.metrics import WorkerMetrics
from worker.planner.base import Planner, Replanner
from worker.planner.given import GivenPlanner
from worker.planner.model import ModelPlanner
from worker.planner.runbook import RunbookPlanner
from worker.run.budget import default_budget
from worker.run.events import EventWriter
from worker.sandbox.base import Limits, Sandbox
from worker.sandbox.limits import limits_of
from worker.steps.approval import ApprovalPolicy
from worker.steps.output import OutputLimits
from worker.tools.base import Risk
from worker.tools.publication import tool_set
from worker.tools.registry import ToolRegistry
from worker.tools.toolbox import open_tools


@dataclass(frozen=True, slots=True)
class Equipment:
    """`budget` is that of runs that name none; `seal` opens users' secrets; `replanner` is asked at most `replans`
    times a run; `versions_max_bytes` of what files were are kept with a run; a store may refuse for
    `refused_seconds`."""

    resources: Resources
    events: EventWriter
    metrics: WorkerMetrics
    gateway: ModelGateway
    planners: Sequence[Planner]
    replanner: Replanner | None
    replans: int
    tools: ToolRegistry
    tools_disabled: frozenset[str]
    published_tools: ToolSet
    mcp: McpServers
    parser: Parser
    approval: ApprovalPolicy
    budget: RunBudget
    seal: Seal | None
    sandbox: Sandbox
    scratch: Scratch
    quota: Quota
    user_quota: StorageQuota
    versions_max_bytes: int
    refused_seconds: float
    limits: Limits
    most_memory_bytes: int
    most_cpus: float
    output: OutputLimits
    step_concurrency: int
    retry_base_seconds: float
    retry_max_seconds: float
    crash_limit: int
    lease_seconds: float
    worker_id: str


@asynccontextmanager
async def open_equipment(
    settings: Settings,
    resources: Resources,
    events: EventWriter,
    sandbox: Sandbox,
    metrics: WorkerMetrics,
    worker_id: str,
    scratch: Scratch,
    builtin: ToolRegistry,
) -> AsyncIterator[Equipment]:
    """Raises InvalidInput when the settings cannot be used, PluginRefused. `resources.slots` must run by the time when
    a model is asked."""
    planner = _model_planner(settings)
    risk = None if settings.approval_risk == "never" else Risk[settings.approval_risk.upper()]
    async with (
        open_gateway(settings, resources.slots, resources.buckets, metrics) as gateway,
        open_tools(settings, builtin, resources.artifacts, embedder_of(settings, gateway)) as tools,
    ):
        yield Equipment(
            resources=resources,
            events=events,
            metrics=metrics,
            gateway=gateway,
            planners=(GivenPlanner(), RunbookPlanner(), planner),
            replanner=planner,
            replans=settings.plan_replans,
            tools=tools,
            tools_disabled=frozenset(settings.tools_disabled),
            published_tools=tool_set(tools, has_model=gateway.is_set),
            mcp=McpServers(
                servers_of(settings.mcp_servers),
                allow_private=settings.outside_allow_private,
                timeout_seconds=settings.mcp_timeout_seconds,
                max_bytes=settings.outside_max_bytes,
            ),
            parser=Parser(),
            approval=ApprovalPolicy(frozenset(settings.approval_tools), risk, settings.approval_usd),
            budget=default_budget(settings),
            seal=resources.seal,
            sandbox=sandbox,
            scratch=scratch,
            quota=Quota(
                settings.workspace_max_bytes,
                settings.workspace_max_files,
                settings.workspace_max_depth,
                settings.workspace_step_attributes_max_bytes,
                settings.workspace_run_attributes_max_bytes,
            ),
            user_quota=storage_quota(settings),
            versions_max_bytes=settings.workspace_versions_max_bytes,
            refused_seconds=settings.workspace_refused_seconds,
            limits=limits_of(settings),
            most_memory_bytes=settings.sandbox_memory_max_bytes,
            most_cpus=settings.sandbox_cpus_max,
            output=_output_limits(settings),
            step_concurrency=settings.step_concurrency,
            retry_base_seconds=settings.retry_base_seconds,
            retry_max_seconds=settings.retry_max_seconds,
            crash_limit=settings.worker_crash_limit,
            lease_seconds=settings.lease_seconds,
            worker_id=worker_id,
        )


def _output_limits(settings: Settings) -> OutputLimits:
    return OutputLimits(
        events=settings.step_output_max_bytes,
        result=settings.step_result_max_bytes,
        line=settings.log_line_max_bytes,
        file=settings.step_output_file_max_bytes,
        file_seconds=settings.step_output_file_seconds,
        lines_per_second=settings.run_log_lines_per_second,
        lines_burst=settings.run_log_lines_burst,
    )


def _model_planner(settings: Settings) -> ModelPlanner:
    return ModelPlanner(
        repairs=settings.plan_repairs,
        files_listed=settings.plan_files_listed,
        output_tokens=settings.model_max_output_tokens,
    )
