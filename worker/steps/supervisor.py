"""The supervisor: carries out a plan, as much of it at once as its steps allow, and knows when it cannot go on.

Every step whose requirements are completed is started, in the plan's order, a few at once (STEP_CONCURRENCY). What
stops one step does not stop the others:

    failed       running steps come to their end, no other is started; then the rest is planned anew, or the run fails
    uncertain    the same; then the run waits for a person
    suspended    it waits for a person; the others go on; when none is left that can, the run waits and holds nothing
    no budget    it is tried again when another one has ended and may have given something back; else a person is asked
    interrupted  all end

How one step is carried out is `worker.steps.runner`'s.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.plans import Plan, Step
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import BudgetExhausted, Fault, InvalidPlan, Superseded
from backplane.input.tool_arguments import unknown_tool
from backplane.process.tasks import end
from worker.run.interruption import Cause, Interrupted
from worker.steps.context import RunContext
from worker.steps.effects import CUT_OFF
from worker.steps.outcomes import RunWaits, StepFailed, StepUncertain, Suspended
from worker.steps.references import check_arguments, check_references
from worker.steps.runner import StepRunner
from worker.tools.registry import ToolRegistry

Replan = Callable[[Plan, Sequence[StepRecord], RunError], Awaitable[Plan | None]]
"""Makes, saves and publishes the plan with which the run goes on after this failure; None: there is none."""

_DONE = (StepStatus.COMPLETED, StepStatus.SKIPPED)


class Supervisor:
    """Carries out the plans of one running run with its `tools`."""

    def __init__(self, context: RunContext, tools: ToolRegistry) -> None:
        self.records: dict[str, StepRecord] = {}
        self.tools = tools
        self._context = context
        self._interruption = context.interruption
        self._decisions = context.decisions
        self._runner = StepRunner(context, tools, self.records, self._may_defer)
        self._running: dict[asyncio.Task[None], Step] = {}
        self._suspended: dict[str, Decision] = {}

    @property
    def journal(self) -> list[StepRecord]:
        return sorted(self.records.values(), key=lambda record: record.position)

    def check(self, plan: Plan) -> None:
        """Raises InvalidPlan with all that is wrong: tools that are not there or not allowed, arguments that they do
        not take, references where none may stand, limits over what a step may have."""
        faults = [
            fault for number, step in enumerate(plan.steps) for fault in self._faults(step, f"plan.steps.{number}")
        ]
        if faults:
            raise InvalidPlan.of(faults)

    def _faults(self, step: Step, field: str) -> Iterator[Fault]:
        rules = self._context.rules.steps
        if step.tool in rules.disabled:
            where = f"{field}.tool"
            yield Fault(where, f"{where}: the tool {step.tool!r} may not be used here (TOOLS_DISABLED)")
        elif (tool := self.tools.get(step.tool)) is None:
            yield unknown_tool(step.tool, self.tools.names, f"{field}.tool")
        else:
            for check in (check_arguments, check_references):
                try:
                    check(step, tool, field)
                except InvalidPlan as error:
                    yield from error.faults
        asked = {
            "memory_bytes": (step.limits.memory_bytes, rules.memory_max_bytes, "SANDBOX_MEMORY_MAX_BYTES"),
            "cpus": (step.limits.cpus, rules.cpus_max, "SANDBOX_CPUS_MAX"),
        }
        for name, (wanted, most, setting) in asked.items():
            if wanted is not None and wanted > most:
                where = f"{field}.limits.{name}"
                yield Fault(where, f"{where}: a step may have at most {most:,} ({setting})")

    def know(self, journal: Sequence[StepRecord]) -> None:
        """Add these records to what is known of the run's steps."""
        self.records.update((record.step_id, record) for record in journal)

    async def carry_out(self, plan: Plan, replan: Replan) -> Plan:
        """Carry the plan out. Returns the last plan when every step is done. Raises StepFailed, StepUncertain,
        RunWaits, Interrupted or Superseded; after RunWaits it may be called again, with what has been decided."""
        while True:
            try:
                await self._walk(plan)
                return plan
            except StepFailed as failed:
                try:
                    newer = await replan(plan, self.journal, failed.error)
                except BudgetExhausted as error:
                    decision = await self.ask_for_budget(failed.error.step or "", error)
                    if decision is None:
                        raise failed from None
                    raise RunWaits([decision]) from error
                if newer is None:
                    raise
                plan = newer
            finally:
                self._runner.journal.hand_over()

    # --- one plan ---

    async def _walk(self, plan: Plan) -> None:
        """Carry out what is left of the plan."""
        order, requirements = plan.ordered(), plan.requirements()
        await self._look_at_what_was_begun(order)
        self._suspended.clear()
        stop: Exception | None = None
        starved: dict[str, BudgetExhausted] = {}
        try:
            while True:
                if stop is None:
                    stop = self._start(order, requirements, starved)
                if not self._running:
                    if stop is not None:
                        raise stop
                    if self._has_ended(order):
                        return
                    if starved:
                        await self._ask_or_fail(order, starved)
                        starved.clear()
                    elif self._suspended:
                        raise RunWaits(list(self._suspended.values()))
                    continue
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                starved.clear()
                for task in done:
                    step, error = self._running.pop(task), task.exception()
                    match error:
                        case None:
                            pass
                        case Suspended():
                            self._suspended[step.id] = error.decision
                        case BudgetExhausted():
                            starved[step.id] = error
                        case Exception():
                            stop = graver(stop, error)
                        case _:
                            raise error
                if isinstance(stop, Superseded):
                    self._interruption.set(Cause.SUPERSEDED)
                if self._suspended and self._running and stop is None:
                    await self._look_again()
        finally:
            await end(*self._running)
            self._running.clear()

    def _start(
        self,
        order: Sequence[Step],
        requirements: Mapping[str, frozenset[str]],
        starved: Mapping[str, BudgetExhausted],
    ) -> Exception | None:
        """Start what can be started. Returns the error that forbids further starts, if there is one."""
        busy = {*starved, *self._suspended, *(step.id for step in self._running.values())}
        for step in startable(order, requirements, self.records, busy):
            if len(self._running) >= self._context.rules.steps.concurrency:
                break
            try:
                self._interruption.check()
            except Interrupted as interrupted:
                return interrupted
            task = asyncio.create_task(self._runner.run(step), name=f"step {step.id}")
            self._running[task] = step
        return None

    def _has_ended(self, order: Sequence[Step]) -> bool:
        return all(self.records[step.id].status in _DONE for step in order)

    def _may_defer(self) -> bool:
        """A step's end waits for the next begin, or for the run's end, only where nothing else may come in between."""
        return len(self._running) == 1 and not self._suspended

    async def _look_at_what_was_begun(self, order: Sequence[Step]) -> None:
        """Look at what an earlier worker has begun: first at steps of which nobody knows whether they happened, then at
        a failure to which nothing has followed yet. The order matters: another plan, which may follow a failure, must
        not do again what may have happened."""
        uncertain, failed = self._errors_of(order, StepStatus.UNCERTAIN), self._errors_of(order, StepStatus.FAILED)
        if uncertain:
            raise StepUncertain(uncertain[0])
        asked = [step for step in order if self._runner.is_in_doubt(step)]
        if asked:
            self._interruption.check()
            await self._runner.journal.ask_whether_done(asked, CUT_OFF)
        if failed:
            raise StepFailed(failed[0])

    def _errors_of(self, order: Sequence[Step], status: StepStatus) -> list[RunError]:
        records = [self.records[step.id] for step in order]
        errors = [(record.result or {}).get("error") for record in records if record.status is status]
        return [RunError(**error) for error in errors if error]

    # --- what people decide ---

    async def _look_again(self) -> None:
        await self._decisions.look()
        self._suspended = {
            step_id: decision
            for step_id, decision in self._suspended.items()
            if self._decisions.get(decision.id).status is DecisionStatus.PENDING
        }

    async def _ask_or_fail(self, order: Sequence[Step], starved: dict[str, BudgetExhausted]) -> None:
        """No step can give anything back to the budget any more: a person has to raise it, or has refused to."""
        step = next(step for step in order if step.id in starved)
        error = starved[step.id]
        decision = await self.ask_for_budget(step.id, error)
        if decision is None:
            await self._runner.journal.fail(step, RunError(error.code, error.message, step=step.id))
        else:
            self._suspended[step.id] = decision

    async def ask_for_budget(self, step_id: str, error: BudgetExhausted) -> Decision | None:
        """The open question whether the budget is raised, for a step or (empty) for the planner; None: a person has
        refused."""
        return await self._runner.ask_for_budget(step_id, error)


def startable(
    order: Sequence[Step],
    requirements: Mapping[str, frozenset[str]],
    records: Mapping[str, StepRecord],
    busy: Collection[str],
) -> Iterator[Step]:
    """The steps that may be started now, in the plan's order: those that are not done and not among `busy` (running,
    waiting for a person, without a budget), and whose requirements are done."""
    for step in order:
        if step.id in busy or records[step.id].status in _DONE:
            continue
        if all(records[needed].status in _DONE for needed in requirements[step.id]):
            yield step


def graver(one: Exception | None, other: Exception) -> Exception:
    """The graver of two errors that stop a run. In falling order: another worker has the run, a fault of the platform,
    an interruption from outside, something that a person has to look at, a failure. Of two alike it is the first."""

    def gravity(error: Exception) -> int:
        match error:
            case Superseded():
                return 4
            case Interrupted():
                return 2
            case StepUncertain():
                return 1
            case StepFailed():
                return 0
        return 3

    return other if one is None or gravity(other) > gravity(one) else one
