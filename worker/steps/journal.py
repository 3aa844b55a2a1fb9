"""The journal of a run's steps: what is written and published of each try, before it and after it.

A try is written together with what it takes from the budget: reserved when it begins, settled when it ends. What an
interrupted try took is written with the next record. A step's end is written together with what comes next (the
following step's begin, the end of the run) where that follows at once.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from backplane.domain.budgets import Amounts, Resource
from backplane.domain.decisions import Decision, DecisionKind
from backplane.domain.events import EventType
from backplane.domain.plans import Step, SubStep
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import RateLimited, Refused
from worker.run.decisions import BY_TOOL
from worker.run.events import NewEvent, Write
from worker.steps import effects as step_effects
from worker.steps.context import RunContext
from worker.steps.outcomes import StepFailed, StepUncertain
from worker.tools.base import Effect, NeedsPerson, Tool


@dataclass(slots=True)
class Begun:
    """A try that has begun. `reservation` is what it may spend, `wall_seconds` how long it may take. `halted`: the
    error of a sub-step that ends or suspends this step too."""

    reservation: str
    wall_seconds: float
    began: float = 0.0
    status: StepStatus = StepStatus.STARTED
    halted: Exception | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def halt(self, error: Exception) -> None:
        self.halted = self.halted or error


class StepJournal:
    """`records` is the journal as it is, by step; it is kept up to date here. `may_defer`: whether a step's end is
    followed at once by something that is recorded."""

    def __init__(self, context: RunContext, records: dict[str, StepRecord], may_defer: Callable[[], bool]) -> None:
        self.records = records
        self._context = context
        self._events = context.events
        self._budget = context.access.budget
        self._may_defer = may_defer
        self._pending: list[Write] = []
        self._reservations = itertools.count(1)

    def add(self, record: StepRecord) -> None:
        """Add a sub-step. Its row is written together with the first change to it."""
        self.records[record.step_id] = record
        self._pending.append(lambda transaction: transaction.add_step(record))

    def write_later(self, write: Write) -> None:
        """Let `write` go with the next record."""
        self._pending.append(write)

    def hand_over(self) -> None:
        """No step is carried out any more: all pending writes go with the run's next record."""
        for write in self._take_pending():
            self._events.defer(write)

    async def flush(self) -> None:
        """Write down what is pending. Raises Superseded."""
        await self._record()

    # --- a try ---

    async def begin(self, step: Step, tool: Tool) -> Begun:
        """Write that a try begins, and reserve what it may spend. Raises BudgetExhausted; then the try has not
        begun."""
        wall = float(step.timeout_seconds or self._context.rules.steps.limits.wall_seconds)
        reserved = Amounts(steps=1)
        if self._budget.active and not tool.delegates:
            left = await self._budget.left(Resource.SECONDS)
            seconds = math.ceil(wall)
            if left is not None:
                seconds = max(min(seconds, left), 1)
                wall = min(wall, float(seconds))
            reserved = Amounts(steps=1, seconds=seconds)
        begun = Begun(f"step-{next(self._reservations)}", wall)
        tries = self.records[step.id].tries + 1
        await self._record(
            self._budget.reserve(begun.reservation, step.id, reserved),
            lambda transaction: transaction.begin_step(step.id, tries),
            publish=[self._event(step, StepStatus.STARTED)],
        )
        self._change(step, status=StepStatus.STARTED, tries=tries)
        begun.began = time.monotonic()
        return begun

    async def count(self, step: Step) -> None:
        """Take a step from the budget for what no tool carries out. Raises BudgetExhausted."""
        if self._budget.active:
            reservation, one = f"step-{next(self._reservations)}", Amounts(steps=1)
            await self._record(self._budget.reserve(reservation, step.id, one), self._budget.settle(reservation, one))

    async def changes_begin(self, step: Step, begun: Begun) -> None:
        """Write that from here on the try may have changed something. Raises Interrupted where the run is interrupted
        already."""
        self._context.interruption.changes_begin()
        await self._record(lambda transaction: transaction.step_is_changing(step.id))
        begun.status = StepStatus.CHANGING
        self._change(step, status=StepStatus.CHANGING)

    def settled(self, tool: Tool, begun: Begun, seconds: float, *, steps: int = 1) -> Write:
        """The write that settles a try of so many seconds. `steps` is 0 for a pause: the step is counted when it goes
        on. Otherwise the paused step would take what a person adds, before the sub-step for which it was needed."""
        spent = Amounts(steps=steps, seconds=0 if tool.delegates else math.ceil(seconds))
        return self._budget.settle(begun.reservation, spent)

    def interrupted(self, step: Step, reason: str) -> None:
        """Publish that the step was interrupted."""
        self._events.emit(*self._event(step, "interrupted", reason=reason))

    # --- how it ends ---

    async def end(
        self, step: Step, status: StepStatus, report: dict[str, Any], writes: Sequence[Write] = (), **published: Any
    ) -> None:
        """A try has ended: COMPLETED, FAILED, or PENDING when it is made again. `report` is its result; `published` is
        in the event alone."""
        record = self.records[step.id]
        failed = record.failed_tries + ("error" in report)
        files = self._context.files.workspace.take_changes(record.files)
        attributes = self._context.files.workspace.take_attributes(record.attributes)
        end = _end_of(step, status, report, files, failed, attributes)
        shown = "retrying" if status is StepStatus.PENDING else status
        event = self._event(step, shown, **report, **published)
        if status is not StepStatus.PENDING and not isinstance(step, SubStep) and self._may_defer():
            for write in (*self._take_pending(), end, *writes):
                self._events.defer(write)
            self._events.emit(*event)
        else:
            await self._record(end, *writes, publish=[event])
        self._change(
            step,
            status=status,
            result=report,
            failed_tries=failed,
            files=files,
            attributes=attributes,
            finished_at=datetime.now(UTC),
        )

    async def fail(self, step: Step, error: RunError) -> NoReturn:
        """Let a step fail that was not carried out. Raises StepFailed."""
        report = {"exit_code": 1, "output": "", "duration_ms": 0, "files_changed": [], "error": error.as_dict()}
        await self.end(step, StepStatus.FAILED, self._context.redactor.value(report))
        raise StepFailed(error)

    async def ask_whether_done(
        self,
        steps: Sequence[Step],
        reason: str,
        *writes: Write,
        effect: Effect = Effect.POSSIBLE,
        result: Mapping[str, Any] | None = None,
        trace: str = "",
    ) -> NoReturn:
        """Write that these steps may have happened, or have happened and failed. `result`: what is known of the end,
        where there is one step. Raises StepUncertain."""
        message = step_effects.question([step.id for step in steps], self._context.redactor.text(reason), effect)
        error = RunError("step_uncertain", message, step=steps[0].id)
        kept = {**(result or {}), "error": error.as_dict()}
        await self._record(
            *(_end_of(step, StepStatus.UNCERTAIN, kept) for step in steps),
            *writes,
            publish=[self._event(step, StepStatus.UNCERTAIN, **kept) for step in steps],
        )
        for step in steps:
            self._change(step, status=StepStatus.UNCERTAIN, result=kept)
        raise StepUncertain(error, trace)

    # --- while it waits ---

    async def suspend(self, step: Step, settled: Write) -> None:
        """Let the step wait. Nothing is lost or in doubt: when its tool is called again, it finds its sub-steps."""
        await self._record(lambda transaction: transaction.suspend_step(step.id), settled)
        self._change(step, status=StepStatus.PENDING)

    async def note(self, step: Step, result: dict[str, Any], *writes: Write) -> None:
        """Write what the step has to know when it goes on; nothing of it is in doubt meanwhile. Raises what refuses
        one of the `writes`; then nothing is written."""
        result = self._context.redactor.value(result)
        await self._record(
            lambda transaction: transaction.note_step(step.id, result),
            *writes,
            publish=[self._event(step, StepStatus.STARTED)],
        )
        self._change(step, result=result)

    async def ask_for_approval(self, step: Step, asked: Mapping[str, Any]) -> Decision:
        parent = self.records[step.id].parent
        return await self._context.decisions.ask(
            step.id, DecisionKind.APPROVAL, asked, *self._take_pending(), parent=parent
        )

    async def ask_for_tool(self, step: Step, needs: NeedsPerson, settled: Write) -> Decision:
        asked = self._context.redactor.value({**needs.asked, "by": BY_TOOL})
        asked["round"] = self.records[step.id].failed_tries
        decision = await self._context.decisions.ask(
            step.id,
            needs.kind,
            asked,
            *self._take_pending(),
            lambda transaction: transaction.suspend_step(step.id),
            settled,
            parent=self.records[step.id].parent,
        )
        self._change(step, status=StepStatus.PENDING)
        return decision

    def warn(self, step: Step, line: str) -> None:
        line = self._context.redactor.text(line)
        self._events.emit(EventType.LOG, {"line": line, "step": step.id, "level": "warning"})

    # --- how it is written ---

    async def _record(self, *writes: Write, publish: Sequence[NewEvent] = ()) -> None:
        pending = self._take_pending()
        try:
            await self._events.record(*pending, *writes, publish=publish)
        except (Refused, RateLimited):
            self._pending = [*pending, *self._pending]
            raise

    def _take_pending(self) -> list[Write]:
        pending, self._pending = self._pending, []
        return pending

    def _change(self, step: Step, **values: Any) -> None:
        self.records[step.id] = replace(self.records[step.id], **values)

    def _event(self, step: Step, status: str, **more: Any) -> NewEvent:
        # The output has been published line by line; a value may be long, and its handler alone needs it.
        shown = {key: value for key, value in more.items() if key not in ("output", "output_cut", "value")}
        return EventType.STEP, {"step": step.id, "title": step.title, "tool": step.tool, "status": status, **shown}


def _end_of(
    step: Step,
    status: StepStatus,
    result: dict[str, Any],
    files: Mapping[str, str | None] | None = None,
    failed_tries: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Write:
    return lambda transaction: transaction.end_step(step.id, status, result, files, failed_tries, attributes)
