"""A running run and all that its steps work with, from its files to the end of its plan. `worker.execution` decides
what becomes of the run then."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from backplane.domain.budgets import MICRO
from backplane.domain.events import EventType
from backplane.domain.plans import Plan
from backplane.domain.runbook import note_on_planner
from backplane.domain.runs import Run, RunError, Taken
from backplane.domain.steps import StepRecord, StepStatus, pending_steps
from backplane.errors import BudgetExhausted, InvalidPlan, ModelError, NotFound, Unavailable
from backplane.process.retrying import WaitRules, until_available
from backplane.tool_catalogue.base import decoded as decoded_set
from backplane.workspace.attributes import decoded
from worker.context import WorkerContext
from worker.files.checkouts import Checkouts, StepCheckout
from worker.files.counted import CountedWorkspace
from worker.files.restore import restore
from worker.files.retrying import RetryingWorkspace
from worker.files.versioned import EarlierSteps, VersionedWorkspace, state_after
from worker.handlers.children import ChildRuns
from worker.handlers.code import Code, code_of
from worker.handlers.driver import HandlerDriver
from worker.handlers.events import AwaitedEvents
from worker.handlers.registry import Handler
from worker.llm.base import Spent
from worker.llm.session import RunModels
from worker.planner.base import Planning, make_plan
from worker.planner.model import ModelPlanner
from worker.roles.code import RoleTurns, open_turns
from worker.roles.turn import TurnEnd
from worker.run.budget import Budget
from worker.run.decisions import RunDecisions
from worker.run.events import RunEvents
from worker.run.interruption import Cause, Interrupted, Interruption
from worker.run.secrets import RunSecrets, named_in_run
from worker.sandbox.base import Call
from worker.steps import effects as step_effects
from worker.steps.context import CallContext, RunAccess, RunContext, RunFiles
from worker.steps.outcomes import RunWaits, StepFailed
from worker.steps.output import first_paths
from worker.steps.sub_steps import NoSubSteps
from worker.steps.supervisor import Supervisor
from worker.summary import summarize
from worker.tools.recorded import Recordings, recorded_tools
from worker.tools.registry import ToolRegistry, describe

MCP_STEP = "mcp"
"""Stands in place of a step's id while servers are asked what they offer."""
NOTED_TOOLS_MAX_BYTES = 1024 * 1024
"""The size of the JSON of the tools that MCP servers offer a run."""

PASSED_ON_MAX = 120
"""How often a run is left to a worker that has its handler, before it fails: no such worker may serve its queue."""

EnsureOurs = Callable[[], Awaitable[None]]
"""Raises Superseded when another worker has the run."""


async def open_work(
    worker: WorkerContext, events: RunEvents, taken: Taken, interruption: Interruption, ensure_ours: EnsureOurs
) -> "RunWork":
    """Open what the run needs. Waits while the database is away. Raises Superseded, SecretsNotKept."""
    run, store = taken.run, worker.resources.store
    access = await _open_access(worker, events, taken, interruption)
    decisions = RunDecisions(events, store.decisions, run)
    if run.generation > 1 or run.origin is not None:
        await decisions.look()
    journal: list[StepRecord] = []
    if run.plan is not None or (run.is_of_code and (run.generation > 1 or run.origin is not None)):
        journal = await until_available(lambda: store.journal.steps(run.id, with_files=True))
    files = _open_files(worker, events, run, journal, ensure_ours)
    context = RunContext(worker, run, events, interruption, decisions, files, access)
    return RunWork(worker, context, journal, ensure_ours)


async def _open_access(worker: WorkerContext, events: RunEvents, taken: Taken, interruption: Interruption) -> RunAccess:
    run, store, gateway = taken.run, worker.resources.store, worker.shared.gateway
    secrets = RunSecrets(store.secrets, worker.resources.seal, run.id, run.user_id, events.redactor)
    names = named_in_run(run)
    if names or taken.knows_secrets:
        await until_available(lambda: secrets.learn(names, was_given_some=taken.knows_secrets))
    budget = await Budget.open(store, run, taken.tier, worker.rules.runs.budget, has_accounts=taken.has_accounts)
    models = None
    replays = (run.origin or {}).get("kind") == "replay"
    may_name_one = run.is_of_code and gateway.models.servers
    if gateway.models.is_set or run.model is not None or replays or may_name_one:
        models = RunModels(gateway, store.model_calls, run, events, budget, events.redactor.text, interruption)
        if run.generation > 1:
            await models.load()
    return RunAccess(budget, models, secrets)


def _open_files(
    worker: WorkerContext, events: RunEvents, run: Run, journal: Sequence[StepRecord], ensure_ours: EnsureOurs
) -> RunFiles:
    resources, rules, scratch = worker.resources, worker.rules.files, worker.shared.scratch
    workspaces = resources.workspaces

    def warn(line: str) -> None:
        _warn(events, line)

    async def journal_of(run_id: str) -> Sequence[StepRecord]:
        """Of this turn of the run's agent, and of those after it."""
        return await until_available(lambda: resources.store.journal.of_turns_since(run.workspace_id, run_id))

    def warn_away(error: Unavailable, pause: float) -> None:
        _warn_away(events, error, pause)

    waits = WaitRules(warn_away, rules.refused_seconds)
    counted = CountedWorkspace(
        workspaces.workspace(run.user_id, run.workspace_id), resources.storage, rules.user_quota, run.user_id
    )
    stored = RetryingWorkspace(counted, waits, ensure_ours, worker.metrics.transferred)
    workspace = VersionedWorkspace(
        stored,
        workspaces.versions(run.user_id, run.workspace_id),
        EarlierSteps.of(run, journal, journal_of),
        max_bytes=rules.versions_max_bytes,
        quota=rules.quota,
        log_line=warn,
        waits=waits,
    )
    base = scratch.folder / f"{run.id}-{run.generation}"
    return RunFiles(stored, workspace, Checkouts(workspace, rules.quota, base, workspace.attributes, warn))


class HandlerElsewhere(Exception):
    """This worker has no handler of the run's, and another one has."""


class RunWork:
    """The work of one running run. `journal`: as it was when the run was claimed."""

    def __init__(
        self, worker: WorkerContext, context: RunContext, journal: Sequence[StepRecord], ensure_ours: EnsureOurs
    ) -> None:
        self.context = context
        self.events = context.events
        self._worker = worker
        self._run = context.run
        self._interruption = context.interruption
        self._journal = list(journal)
        self._models = context.access.models
        self._workspace = context.files.workspace
        self._ensure_ours = ensure_ours
        self._plan: Plan | None = None
        self._supervisor: Supervisor | None = None
        self._open_driver: Callable[[], HandlerDriver] | None = None
        self._records: dict[str, StepRecord] | None = None
        self._value: Any = None
        self._turns: RoleTurns | None = None

    async def restore_files(self) -> None:
        """Give the run the files that it goes on from, where it is to have others. Raises FilesGone, Interrupted."""
        if self._run.restore is None:
            return
        await self._interruption.guard(
            restore(
                self._worker.resources.workspaces,
                self.context.files.stored,
                self._run,
                self._journal,
                ensure_ours=self._ensure_ours,
                log_line=lambda line: self.events.emit(EventType.LOG, {"line": line}),
                waits=WaitRules(partial(_warn_away, self.events), self._worker.rules.files.refused_seconds),
            )
        )
        await self.events.record(lambda transaction: transaction.restored())

    async def carry_out(self) -> None:
        """Plan the run, where it has no plan yet, and carry the plan out; or let its handler carry it out. Raises what
        Supervisor.carry_out and HandlerDriver.carry_out raise, and what a planner raises. After RunWaits, Sleeps and
        WaitsForRuns it may be called again."""
        if self._run.is_of_code:
            if self._open_driver is None:
                self._open_driver = await self._driver()
            self._value = await self._open_driver().carry_out()
            return
        if self._supervisor is None:
            self._supervisor = Supervisor(self.context, await self._tools())
            self._supervisor.know(self._journal)
        if self._plan is None:
            self._plan = await self._planned(self._supervisor)
        self._plan = await self._supervisor.carry_out(self._plan, self._replan)

    async def _driver(self) -> Callable[[], HandlerDriver]:
        """Makes a driver of the run's code, to be made anew each time that the code is run."""
        code_of_run = await self._code()
        self._records = {record.step_id: record for record in self._journal}
        children = ChildRuns(self._worker.resources, self._run, self._worker.storage_limits)
        tools = self._worker.shared.tools if self.context.shows_only else await self._tools()
        awaited = AwaitedEvents(self._worker.resources.store, self._run)

        def driver() -> HandlerDriver:
            assert self._records is not None
            return HandlerDriver(self.context, tools, code_of_run(tools), self._records, children, awaited)

        return driver

    async def _code(self) -> Callable[[ToolRegistry], Code]:
        if self._run.agent_id is not None:
            worker = self._worker
            self._turns = await open_turns(
                worker.resources, worker.roles, worker.storage_limits, self._run, self.events.redactor
            )
            return self._turns.code
        handler = await self._handler(str(self._run.handler))
        return lambda _: code_of(handler, self._run)

    async def _handler(self, name: str) -> Handler:
        handler = self._worker.handlers.get(name)
        if handler is None:
            # Each effect may have taken a claim of its own: a sleep does.
            passed_on = self._run.generation - len(self._journal)
            if passed_on <= PASSED_ON_MAX and await self._is_elsewhere(name):
                raise HandlerElsewhere(name)
            there = ", ".join(self._worker.handlers.names) or "none"
            raise StepFailed(
                RunError(
                    "handler_unknown",
                    f"the worker that took the run has no handler {name!r} (it has: {there}). Install its package for "
                    "all workers that take such runs, then retry it",
                )
            )
        return handler

    async def _is_elsewhere(self, name: str) -> bool:
        """Whether another live worker has published that it has this handler."""
        catalogue = self._worker.resources.tool_catalogue
        published = await until_available(catalogue.published)
        for _, document in published:
            with suppress(ValueError):
                if any(handler.name == name for handler in decoded_set(document).handlers):
                    return True
        return False

    async def summary(self) -> str | None:
        """A model's summary of a completed run that a model planned. Raises Interrupted. A run whose time is up gets no
        summary, and is completed all the same."""
        if self._plan is None or self._supervisor is None or self._plan.planner != ModelPlanner.name:
            return None
        # What is done is stored before anything else is waited for.
        await self.events.record()
        asked = summarize(self._run, self._plan, self._supervisor.journal, self._models)
        try:
            return await self._interruption.guard(asked)
        except Interrupted as interrupted:
            if interrupted.cause is Cause.TIMED_OUT:
                return None
            raise

    def result(self, summary: str | None) -> dict[str, Any]:
        """The run's files and what it cost."""
        journal = self._supervisor.journal if self._supervisor else list((self._records or {}).values())
        journal = journal or self._journal
        spent = self._models.spent() if self._models else Spent()
        seconds = sum((record.result or {}).get("duration_ms", 0) for record in journal if record.parent is None)
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
        value = {"value": self._value} if self._run.is_of_code else {}
        return {"summary": summary, "files": named, **left_out, "cost": cost, **value}

    def agent_changes(self) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
        """Of the turn of an agent: its new state, and its new summary of older turns. None: it stays."""
        ended = TurnEnd() if self._turns is None else self._turns.ended
        return ended.state, ended.summary

    # --- its plans ---

    def _planning(self, supervisor: Supervisor) -> Planning:
        return Planning(self._models, supervisor.tools, self._workspace, supervisor.check, self._worker.shared.parser)

    async def _planned(self, supervisor: Supervisor) -> Plan:
        """The plan that was made before, or a new one, which is saved together with the start of its first step."""
        if self._run.plan is not None:
            return Plan.model_validate(self._run.plan)
        planning = self._planning(supervisor)
        try:
            plan = await self._interruption.guard(make_plan(self._worker.planning.planners, self._run, planning))
        except BudgetExhausted as error:
            decision = await supervisor.ask_for_budget("", error)
            if decision is None:
                raise
            raise RunWaits([decision]) from error
        planning.check(plan)
        journal = pending_steps(plan)
        supervisor.know(journal)
        self.events.defer(lambda transaction: transaction.save_plan(plan, journal))
        self.events.emit(EventType.PLAN, {**_shown(plan, 1), **self._note_on_planner(plan)})
        return plan

    def _note_on_planner(self, plan: Plan) -> dict[str, str]:
        """A note on how to choose another planner, where one could have taken the prompt."""
        if self._models is None or self._run.given_plan is not None or self._run.planner is not None:
            return {}
        note = note_on_planner(plan.planner, self._run.prompt)
        return {"note": note} if note else {}

    async def _replan(self, plan: Plan, journal: Sequence[StepRecord], error: RunError) -> Plan | None:
        replanner, supervisor = self._worker.planning.replanner, self._supervisor
        may = plan.planner == ModelPlanner.name and self._run.plan_version <= self._worker.rules.runs.replans
        if replanner is None or supervisor is None or self._models is None or not may:
            return None
        # The failure is stored before anything else is waited for.
        await self.events.record()
        hiding = step_effects.step_with_effects_below(
            plan, journal, supervisor.tools.get, isolated=self.context.is_isolated
        )
        if hiding is not None:
            self._warn(
                f"the run is not planned anew: steps below {hiding!r} have changed something outside, which a new plan "
                "would do again"
            )
            return None
        planning = self._planning(supervisor)
        try:
            new_plan = await self._interruption.guard(replanner.replan(self._run, plan, journal, error, planning))
        except (ModelError, InvalidPlan) as failed:
            self._warn(f"the run cannot be planned anew: {failed.message}")
            return None
        if new_plan is None:
            return None
        version = self._run.plan_version + 1
        known = {record.step_id for record in journal}
        following = 1 + max((record.position for record in journal), default=-1)
        added = [
            replace(record, position=following + number)
            for number, record in enumerate(record for record in pending_steps(new_plan) if record.step_id not in known)
        ]
        reason = f"step {error.step} failed: {error.kept_message}" if error.step else error.kept_message
        await self.events.record(
            lambda transaction: transaction.replace_plan(new_plan, version, reason, added),
            publish=[(EventType.PLAN, {**_shown(new_plan, version), "reason": reason})],
        )
        kept = {step.id for step in new_plan.steps}
        supervisor.know(added)
        supervisor.know(
            [
                replace(record, status=StepStatus.SKIPPED)
                for record in journal
                if record.status is StepStatus.PENDING and record.step_id not in kept
            ]
        )
        self._run = replace(self._run, plan=new_plan.model_dump(mode="json"), plan_version=version)
        return new_plan

    # --- its parts ---

    async def _tools(self) -> ToolRegistry:
        """The worker's tools, and those of the MCP servers that the run names."""
        if self.context.shows_only:
            return await self._recorded_tools()
        if not self._run.mcp_servers:
            return self._worker.shared.tools
        checkout = StepCheckout(self.context.files.checkouts)
        try:
            found = await self._interruption.guard(
                self._worker.planning.mcp.tools(self._run.mcp_servers, self._context_for_mcp(checkout))
            )
        finally:
            checkout.close()
        tools = self._worker.shared.tools.with_tools(found).without(self._worker.rules.steps.disabled)
        await self._note_tools([describe(tool) for tool in found if tool.name in tools.names])
        return tools

    async def _note_tools(self, offered: Sequence[Mapping[str, Any]]) -> None:
        """Keep the tools for a replay of the run. A list that is too large is not kept, and a replay that needs it says
        so."""
        kept = self.events.redactor.value(list(offered))
        if len(json.dumps(kept)) <= NOTED_TOOLS_MAX_BYTES:
            await self.events.record(lambda transaction: transaction.note_tools(kept))

    async def _recorded_tools(self) -> ToolRegistry:
        """The tools of a replay that carries nothing out: their results are those in the journal of its source."""
        resources, run, workspace = self._worker.resources, self._run, self._workspace
        store = resources.store
        source = str((run.origin or {})["run_id"])
        records = await until_available(lambda: store.journal.steps(source, with_files=True))
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
        offered = await until_available(lambda: store.journal.tools(source))
        if offered:
            await self._note_tools(offered)
        return recorded_tools(self._worker.shared.tools, recordings, offered)

    def _context_for_mcp(self, checkout: StepCheckout) -> CallContext:
        run = self._run
        return CallContext(
            run=self.context,
            call=Call(run.user_id, run.id, MCP_STEP, run.generation, 1),
            checkout=checkout,
            limits=self._worker.rules.steps.limits,
            secrets=self.context.access.secrets.of_tool(MCP_STEP),
            tools=None,
            port=_NoStep(self._warn),
        )

    def _warn(self, line: str) -> None:
        _warn(self.events, line)


class _NoStep:
    """Stands in place of a step while servers are asked what they offer."""

    answer = None
    round = 0

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.sub_steps = NoSubSteps()
        self.notice = warn

    def output(self, chunk: bytes, /) -> None:
        pass

    async def about_to_change(self) -> None:
        raise InvalidPlan("a server may change nothing while it is asked what it offers")


def _warn(events: RunEvents, line: str) -> None:
    events.emit(EventType.LOG, {"line": line, "level": "warning"})


def _warn_away(events: RunEvents, error: Unavailable, pause: float) -> None:
    _warn(events, f"{error.message}; trying again in {pause:.1f} s")


def _shown(plan: Plan, version: int) -> dict[str, Any]:
    steps = [{"id": step.id, "title": step.title, "tool": step.tool} for step in plan.ordered()]
    return {"planner": plan.planner, "version": version, "steps": steps}
