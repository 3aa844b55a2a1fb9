"""A held run and all that its steps work with, from its files to its plan's end. What becomes of the run then is
`worker.execution`'s."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from backplane.domain.budgets import MICRO
from backplane.domain.events import EventType
from backplane.domain.plans import Plan
from backplane.domain.runbook import note_on_planner
from backplane.domain.runs import Run, RunError, Taken
from backplane.domain.steps import StepRecord, StepStatus, pending_steps
from backplane.errors import BudgetExhausted, InvalidPlan, ModelError, NotFound, Unavailable
from backplane.process.retrying import until_available
from backplane.workspace.attributes import decoded
from worker.context import Equipment
from worker.files.checkouts import Checkouts, StepCheckout
from worker.files.counted import CountedWorkspace
from worker.files.restore import restore
from worker.files.retrying import PatientWorkspace
from worker.files.versioned import VersionedWorkspace, has_begun, state_after
from worker.llm.base import Models, Spent
from worker.llm.session import RunModels
from worker.planner.base import Planning, make_plan
from worker.planner.model import ModelPlanner
from worker.run.budget import Budget
from worker.run.decisions import People
from worker.run.events import RunEvents
from worker.run.interruption import Cause, Interrupted, Interruption
from worker.run.secrets import RunSecrets, named_in_run
from worker.sandbox.base import Call
from worker.steps import effects as step_effects
from worker.steps.context import StepTools
from worker.steps.outcomes import RunWaits
from worker.steps.output import first_paths
from worker.steps.sub_steps import NoSubSteps
from worker.steps.supervisor import Supervisor
from worker.summary import summarize
from worker.tools.base import ToolContext
from worker.tools.recorded import Recordings, recorded_tools
from worker.tools.registry import ToolRegistry, describe

MCP_STEP = "mcp"
NOTED_TOOLS_MAX_BYTES = 1024 * 1024
"""Of the JSON of what MCP servers offer a run."""
"""In place of a step's id, where servers are asked what they offer."""

TellAway = Callable[[Unavailable, float], None]


async def open_work(
    equipment: Equipment,
    events: RunEvents,
    taken: Taken,
    interruption: Interruption,
    *,
    still_held: Callable[[], Awaitable[None]],
    tell_away: TellAway,
) -> "RunWork":
    """Waits while the database is away. Raises Superseded, SecretsNotKept."""
    run, resources = taken.run, equipment.resources
    secrets = RunSecrets(resources.store.secrets, equipment.seal, run.id, run.user_id, events.redactor)
    names = named_in_run(run)
    if names or taken.knows_secrets:
        await until_available(lambda: secrets.learn(names, was_given_some=taken.knows_secrets), tell_away)
    budget = await Budget.open(resources.store, run, taken.tier, equipment.budget, has_accounts=taken.has_accounts)
    models = None
    replays = (run.origin or {}).get("kind") == "replay"
    if equipment.gateway.is_set or run.model is not None or replays:
        models = RunModels(
            equipment.gateway, resources.store.model_calls, run, events, budget, events.redactor.text, interruption
        )
        if run.generation > 1:
            await models.load()
    people = People(events, resources.store.decisions, run)
    if run.generation > 1 or run.origin is not None:
        await people.look()
    journal: list[StepRecord] = []
    if run.plan is not None:
        journal = await until_available(lambda: resources.store.journal.steps(run.id, with_files=True), tell_away)
    return RunWork(
        equipment, events, run, interruption, journal, models, budget, people, secrets, still_held, tell_away
    )


class RunWork:
    """Of one held run. `journal`: as it was when the run was taken."""

    def __init__(
        self,
        equipment: Equipment,
        events: RunEvents,
        run: Run,
        interruption: Interruption,
        journal: Sequence[StepRecord],
        models: Models | None,
        budget: Budget,
        people: People,
        secrets: RunSecrets,
        still_held: Callable[[], Awaitable[None]],
        tell_away: TellAway,
    ) -> None:
        self.events = events
        self.people = people
        self._with = equipment
        self._run = run
        self._interruption = interruption
        self._journal = list(journal)
        self._models = models
        self._budget = budget
        self._secrets = secrets
        self._still_held = still_held
        self._tell_away = tell_away
        self._shows_only = is_replay_without_execution(run)
        self._plan: Plan | None = None
        self._supervisor: Supervisor | None = None
        workspaces = equipment.resources.workspaces
        stored = CountedWorkspace(
            workspaces.workspace(run.user_id, run.id), equipment.resources.storage, equipment.user_quota, run.user_id
        )
        self._patient = PatientWorkspace(
            stored,
            self._tell_workspace,
            still_held,
            equipment.metrics.transferred,
            refused_seconds=equipment.refused_seconds,
        )
        self._workspace = VersionedWorkspace(
            self._patient,
            workspaces.versions(run.user_id, run.id),
            self._journal,
            begun=has_begun(run, journal),
            max_bytes=equipment.versions_max_bytes,
            quota=equipment.quota,
            tell=self._warn,
            tell_away=self._tell_workspace,
            refused_seconds=equipment.refused_seconds,
        )
        base = equipment.scratch.folder / f"{run.id}-{run.generation}"
        self.checkouts = Checkouts(self._workspace, equipment.quota, base, self._workspace.attributes, self._warn)

    async def restore_files(self) -> None:
        """Give the run the files that it goes on from, where it is to have others. Raises FilesGone, Interrupted."""
        if self._run.restore is None:
            return
        await self._interruption.guard(
            restore(
                self._with.resources.workspaces,
                self._patient,
                self._run,
                self._journal,
                still_held=self._still_held,
                tell=lambda line: self.events.emit(EventType.LOG, {"line": line}),
                tell_away=self._tell_workspace,
                refused_seconds=self._with.refused_seconds,
            )
        )
        await self.events.record(lambda held: held.restored())

    async def carry_out(self) -> None:
        """Plan it, where it has no plan yet, and carry the plan out. Raises what Supervisor.carry_out does, and what a
        planner does; after RunWaits it may be called again."""
        if self._supervisor is None:
            self._supervisor = self._opened(await self._tools())
            self._supervisor.know(self._journal)
        if self._plan is None:
            self._plan = await self._planned(self._supervisor)
        self._plan = await self._supervisor.carry_out(self._plan, self._replan)

    async def summary(self) -> str | None:
        """Of a run that a model planned and that is done, in a model's words. Raises Interrupted, but for a run whose
        time is up: it is done without one."""
        if self._plan is None or self._supervisor is None or self._plan.planner != ModelPlanner.name:
            return None
        # What is done is kept before anything else is waited for.
        await self.events.record()
        asked = summarize(self._run, self._plan, self._supervisor.journal, self._models)
        try:
            return await self._interruption.guard(asked)
        except Interrupted as interrupted:
            if interrupted.cause is Cause.TIMED_OUT:
                return None
            raise

    def result(self, summary: str | None) -> dict[str, Any]:
        """What the run leaves behind, and what it took."""
        journal = self._supervisor.journal if self._supervisor else self._journal
        spent = self._models.spent() if self._models else Spent()
        seconds = sum((record.result or {}).get("duration_ms", 0) for record in journal if "/" not in record.step_id)
        cost = {
            "input_tokens": spent.input_tokens,
            "output_tokens": spent.output_tokens,
            "usd": None if spent.micro_usd is None else spent.micro_usd / MICRO,
            "model_calls": spent.calls,
            "seconds": round(seconds / 1000, 3),
        }
        files = sorted(state_after({}, journal))
        named = first_paths(files)
        left_out = {"files_left_out": len(files) - len(named)} if len(files) > len(named) else {}
        return {"summary": summary, "files": named, **left_out, "cost": cost}

    # --- its plans ---

    def _planning(self, supervisor: Supervisor) -> Planning:
        return Planning(self._models, supervisor.tools, self._workspace, supervisor.check, self._with.parser)

    async def _planned(self, supervisor: Supervisor) -> Plan:
        """The plan that was made before, else a new one, saved with its first step."""
        if self._run.plan is not None:
            return Plan.model_validate(self._run.plan)
        planning = self._planning(supervisor)
        try:
            plan = await self._interruption.guard(make_plan(self._with.planners, self._run, planning))
        except BudgetExhausted as error:
            decision = await supervisor.ask_for_budget("", error)
            if decision is None:
                raise
            raise RunWaits([decision]) from error
        planning.check(plan)
        journal = pending_steps(plan)
        supervisor.know(journal)
        self.events.defer(lambda held: held.save_plan(plan, journal))
        self.events.emit(EventType.PLAN, {**_told(plan, 1), **self._note_on_planner(plan)})
        return plan

    def _note_on_planner(self, plan: Plan) -> dict[str, str]:
        """Where another planner could have taken the prompt: how to choose it."""
        if self._models is None or self._run.given_plan is not None or self._run.planner is not None:
            return {}
        note = note_on_planner(plan.planner, self._run.prompt)
        return {"note": note} if note else {}

    async def _replan(self, plan: Plan, journal: Sequence[StepRecord], error: RunError) -> Plan | None:
        replanner, supervisor = self._with.replanner, self._supervisor
        may = plan.planner == ModelPlanner.name and self._run.plan_version <= self._with.replans
        if replanner is None or supervisor is None or self._models is None or not may:
            return None
        # The failure is kept before anything else is waited for.
        await self.events.record()
        hiding = step_effects.step_with_effects_below(
            plan, journal, supervisor.tools.get, isolated=self._with.sandbox.isolation.isolated
        )
        if hiding is not None:
            self._warn(
                f"the run is not planned anew: steps below {hiding!r} have changed something outside, which a new plan "
                "would do again"
            )
            return None
        planning = self._planning(supervisor)
        try:
            newer = await self._interruption.guard(replanner.replan(self._run, plan, journal, error, planning))
        except (ModelError, InvalidPlan) as failed:
            self._warn(f"the run cannot be planned anew: {failed.message}")
            return None
        if newer is None:
            return None
        version = self._run.plan_version + 1
        known = {record.step_id for record in journal}
        following = 1 + max((record.position for record in journal), default=-1)
        added = [
            replace(record, position=following + number)
            for number, record in enumerate(record for record in pending_steps(newer) if record.step_id not in known)
        ]
        reason = f"step {error.step} failed: {error.kept_message}" if error.step else error.kept_message
        await self.events.record(
            lambda held: held.replace_plan(newer, version, reason, added),
            tell=[(EventType.PLAN, {**_told(newer, version), "reason": reason})],
        )
        kept = {step.id for step in newer.steps}
        supervisor.know(added)
        supervisor.know(
            [
                replace(record, status=StepStatus.SKIPPED)
                for record in journal
                if record.status is StepStatus.PENDING and record.step_id not in kept
            ]
        )
        self._run = replace(self._run, plan=newer.model_dump(mode="json"), plan_version=version)
        return newer

    # --- its parts ---

    async def _tools(self) -> ToolRegistry:
        """The worker's, and those of the MCP servers that the run names."""
        if self._shows_only:
            return await self._recorded_tools()
        if not self._run.mcp_servers:
            return self._with.tools
        files = StepCheckout(self.checkouts)
        try:
            found = await self._interruption.guard(
                self._with.mcp.tools(self._run.mcp_servers, self._context_for_mcp(files))
            )
        finally:
            files.close()
        tools = self._with.tools.with_tools(found).without(self._with.tools_disabled)
        await self._note_tools([describe(tool) for tool in found if tool.name in tools.names])
        return tools

    async def _note_tools(self, offered: Sequence[Mapping[str, Any]]) -> None:
        """For a replay of the run. What is too large is not kept, and a replay that needs it says so."""
        kept = self.events.redactor.value(list(offered))
        if len(json.dumps(kept)) <= NOTED_TOOLS_MAX_BYTES:
            await self.events.record(lambda held: held.note_tools(kept))

    async def _recorded_tools(self) -> ToolRegistry:
        """Of a replay that carries nothing out: what its source's journal has."""
        resources, run, workspace = self._with.resources, self._run, self._workspace
        source = str((run.origin or {})["run_id"])
        records = await until_available(lambda: resources.store.journal.steps(source, with_files=True), self._tell_away)
        versions = resources.workspaces.versions(run.user_id, source)

        async def delete(path: str) -> None:
            with suppress(NotFound):
                await workspace.delete(path)

        async def attribute(noted: Mapping[str, Any]) -> None:
            await workspace.attributes.load()
            workspace.attributes.change(decoded(noted))

        recordings = Recordings(
            source,
            {record.step_id: record for record in records},
            bring=lambda path, etag: workspace.bring(path, etag, versions, run.id),
            delete=delete,
            attribute=attribute,
        )
        offered = await until_available(lambda: resources.store.journal.tools(source), self._tell_away)
        if offered:
            await self._note_tools(offered)
        return recorded_tools(self._with.tools, recordings, offered)

    def _context_for_mcp(self, files: StepCheckout) -> ToolContext:
        run = self._run

        async def nothing_changes() -> None:
            raise InvalidPlan("a server may change nothing while it is asked what it offers")

        return ToolContext(
            call=Call(run.user_id, run.id, MCP_STEP, run.generation, 1),
            workspace=self._workspace,
            checkout=files,
            sandbox=self._with.sandbox,
            quota=self._with.quota,
            limits=self._with.limits,
            output=lambda _: None,
            notice=self._warn,
            about_to_change=nothing_changes,
            agent=run.agent,
            models=self._models,
            sub_steps=NoSubSteps(),
            secrets=self._secrets.of_tool(MCP_STEP),
            answer=None,
            parser=self._with.parser,
        )

    def _opened(self, tools: ToolRegistry) -> Supervisor:
        equipment, run = self._with, self._run
        step_tools = StepTools(
            user_id=run.user_id,
            run_id=run.id,
            agent=run.agent,
            generation=run.generation,
            tools=tools,
            disabled=equipment.tools_disabled,
            approval=equipment.approval,
            budget=self._budget,
            models=self._models,
            redactor=self.events.redactor,
            secrets=self._secrets,
            workspace=self._workspace,
            attributes=self._workspace.attributes,
            take_changes=self._workspace.take_changes,
            take_attributes=self._workspace.take_attributes,
            checkouts=self.checkouts,
            sandbox=equipment.sandbox,
            quota=equipment.quota,
            limits=equipment.limits,
            most_memory_bytes=equipment.most_memory_bytes,
            most_cpus=equipment.most_cpus,
            output=equipment.output,
            metrics=equipment.metrics,
            shows_only=self._shows_only,
            parser=equipment.parser,
        )
        return Supervisor(
            self.events, self._interruption, self.people, step_tools, concurrency=equipment.step_concurrency
        )

    def _tell_workspace(self, error: Unavailable, pause: float) -> None:
        self._warn(f"{error.message}; trying again in {pause:.1f} s")

    def _warn(self, line: str) -> None:
        self.events.emit(EventType.LOG, {"line": line, "level": "warning"})


def is_replay_without_execution(run: Run) -> bool:
    """Whether the run only shows what another did. A replay that says nothing of it is of an older release, which
    carried all out."""
    origin = run.origin or {}
    return origin.get("kind") == "replay" and not origin.get("execute", True)


def _told(plan: Plan, version: int) -> dict[str, Any]:
    steps = [{"id": step.id, "title": step.title, "tool": step.tool} for step in plan.ordered()]
    return {"planner": plan.planner, "version": version, "steps": steps}
