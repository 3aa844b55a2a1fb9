"""What a worker process has, made of the settings once: the first link of the chain of contexts
(`worker.steps.context`)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backplane.input.parsing import Parser
from backplane.limits.storage.limits import StorageLimits
from backplane.resources import Resources, storage_quota
from backplane.settings import Settings, fixed
from backplane.tool_catalogue.base import ToolSet
from backplane.workspace.quota import Quota
from worker.files.scratch import Scratch
from worker.handlers.registry import HandlerRegistry
from worker.llm.embedding import embedder_of
from worker.llm.gateway import open_gateway
from worker.mcp.offered import McpServers
from worker.mcp.servers import servers_of
from worker.metrics import WorkerMetrics
from worker.planner.base import Planner, Replanner
from worker.planner.given import GivenPlanner
from worker.planner.model import ModelPlanner
from worker.planner.runbook import RunbookPlanner
from worker.roles.installed_code import InstalledCode
from worker.roles.registry import RoleRegistry
from worker.run.apart import Apart
from worker.run.budget import default_budget
from worker.run.event_writer import EventWriter
from worker.sandbox.base import Sandbox
from worker.sandbox.limits import limits_of
from worker.steps.approval import ApprovalPolicy
from worker.steps.context import FileRules, RunRules, SharedParts, StepRules, WorkerRules
from worker.steps.output import OutputLimits
from worker.tools.base import Risk
from worker.tools.publication import tool_set
from worker.tools.toolbox import open_tools


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """The parts of a process that do not depend on any setting of runs. `worker_id` is unique among all processes."""

    worker_id: str
    resources: Resources
    events: EventWriter
    metrics: WorkerMetrics
    sandbox: Sandbox
    scratch: Scratch


@dataclass(frozen=True, slots=True)
class PlanParts:
    """What plans are made with. `replanner` makes another one after a failure."""

    planners: Sequence[Planner]
    replanner: Replanner | None
    mcp: McpServers


@dataclass(frozen=True, slots=True)
class WorkerContext:
    worker_id: str
    resources: Resources
    events: EventWriter
    metrics: WorkerMetrics
    planning: PlanParts
    handlers: HandlerRegistry
    roles: RoleRegistry
    storage_limits: StorageLimits
    apart: Apart
    shared: SharedParts
    rules: WorkerRules

    @property
    def published_tools(self) -> ToolSet:
        """This worker's tools, handlers and roles, as the API gets to know them."""
        has_model, handlers = self.shared.gateway.models.is_set, self.handlers.published()
        return tool_set(self.shared.tools, has_model=has_model, handlers=handlers, roles=self.roles.names)


@asynccontextmanager
async def open_worker_context(
    settings: Settings, process: WorkerProcess, installed: InstalledCode
) -> AsyncIterator[WorkerContext]:
    """Raises InvalidInput when the settings cannot be used, and PluginRefused. `resources.slots.run()` must be running
    before a model is asked."""
    resources, metrics = process.resources, process.metrics
    artifacts, deployments = resources.artifacts, resources.store.deployments
    async with (
        open_gateway(settings, resources.slots, resources.buckets, metrics, resources.store.model_servers) as gateway,
        open_tools(settings, installed.tools, artifacts, embedder_of(settings, gateway), deployments) as tools,
    ):
        yield WorkerContext(
            worker_id=process.worker_id,
            resources=resources,
            events=process.events,
            metrics=metrics,
            planning=_plan_parts(settings),
            handlers=installed.handlers,
            roles=installed.roles,
            storage_limits=StorageLimits(resources.storage, storage_quota(settings)),
            apart=Apart(),
            shared=SharedParts(process.sandbox, process.scratch, Parser(), gateway, tools),
            rules=WorkerRules(_run_rules(settings), _file_rules(settings), _step_rules(settings)),
        )


def _plan_parts(settings: Settings) -> PlanParts:
    planner = ModelPlanner(
        repairs=settings.plan_repairs,
        files_listed=fixed.PLAN_FILES_LISTED,
        output_tokens=settings.model_max_output_tokens,
    )
    mcp = McpServers(
        servers_of(settings.mcp_servers),
        allow_private=settings.outside_allow_private,
        timeout_seconds=settings.mcp_timeout_seconds,
        max_bytes=settings.outside_max_bytes,
    )
    return PlanParts((GivenPlanner(), RunbookPlanner(), planner), planner, mcp)


def _run_rules(settings: Settings) -> RunRules:
    return RunRules(
        budget=default_budget(settings),
        replans=settings.plan_replans,
        retry_base_seconds=settings.retry_base_seconds,
        retry_max_seconds=settings.retry_max_seconds,
        crash_limit=settings.worker_crash_limit,
        lease_seconds=settings.lease_seconds,
    )


def _file_rules(settings: Settings) -> FileRules:
    return FileRules(
        quota=Quota(
            settings.workspace_max_bytes,
            settings.workspace_max_files,
            fixed.WORKSPACE_MAX_DEPTH,
            fixed.WORKSPACE_STEP_ATTRIBUTES_MAX_BYTES,
            fixed.WORKSPACE_RUN_ATTRIBUTES_MAX_BYTES,
        ),
        user_quota=storage_quota(settings),
        versions_max_bytes=settings.workspace_versions_max_bytes,
        refused_seconds=fixed.WORKSPACE_REFUSED_SECONDS,
    )


def _step_rules(settings: Settings) -> StepRules:
    risk = None if settings.approval_risk == "never" else Risk[settings.approval_risk.upper()]
    return StepRules(
        limits=limits_of(settings),
        memory_max_bytes=settings.sandbox_memory_max_bytes,
        cpus_max=settings.sandbox_cpus_max,
        output=_output_limits(settings),
        approval=ApprovalPolicy(frozenset(settings.approval_tools), risk, settings.approval_usd),
        disabled=frozenset(settings.tools_disabled),
        concurrency=settings.step_concurrency,
        model_output_tokens=settings.model_max_output_tokens,
    )


def _output_limits(settings: Settings) -> OutputLimits:
    return OutputLimits(
        events=settings.step_output_max_bytes,
        result=settings.step_result_max_bytes,
        line=fixed.LOG_LINE_MAX_BYTES,
        file=settings.step_output_file_max_bytes,
        file_seconds=fixed.STEP_OUTPUT_FILE_SECONDS,
        lines_per_second=settings.run_log_lines_per_second,
        lines_burst=fixed.RUN_LOG_LINES_BURST,
    )
