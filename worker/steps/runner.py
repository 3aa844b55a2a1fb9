"""One step, from the question whether it may be carried out to its end in the journal.

    fill in → approve → (begin → carry out → end), as often as its retries allow

Each try is noted before and after, together with what it takes from the budget. What a try that did not end well may
have done, and so whether it is made again, is asked of `worker.steps.effects` and of nobody else; so is what a step was
doing when its worker was lost:

    started    nothing has reached the workspace, or outside where the tool announces that
    changing   changes were on their way
    otherwise  it has ended, or a person is asked: it is `uncertain`

A step that finds a part of the platform away is repeated under the same rule until the run's time is up. Something of
the outside that is away (an MCP server, what a plug-in speaks with) ends the try. Steps below a step
(`worker.steps.sub_steps`) come this way too.
"""

import asyncio
import itertools
import math
import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from backplane.domain.budgets import Amounts, Resource
from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.events import EventType
from backplane.domain.plans import Step, SubStep
from backplane.domain.retry import RetryPolicy
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import (
    PLATFORM_PARTS,
    BudgetExhausted,
    InvalidPlan,
    PlatformError,
    Refused,
    Superseded,
    Unavailable,
)
from backplane.process.retrying import pauses
from worker.files.checkouts import StepCheckout
from worker.metrics import StepEnd
from worker.run.decisions import BY_TOOL, People
from worker.run.events import RunEvents, Told, Write
from worker.run.interruption import Cause, Interrupted, Interruption
from worker.sandbox.base import Call
from worker.steps import effects as step_effects
from worker.steps.approval import why_ask
from worker.steps.context import StepTools
from worker.steps.effects import Next
from worker.steps.outcomes import StepFailed, StepUncertain, Suspended, ToolFault, unless_open
from worker.steps.output import StepOutput, TokenBucket, first_paths
from worker.steps.references import fill
from worker.steps.sub_steps import RunSubSteps
from worker.tools.base import Effect, NeedsPerson, Tool, ToolArguments, ToolContext, ToolResult

LONGEST_STEP_PAUSE_SECONDS = 300.0
BEGUN = (StepStatus.STARTED, StepStatus.CHANGING)
_KNOWN = ("output", "output_cut", "duration_ms", "files_changed", "files_left_out", "effect")
"""What the result of an uncertain step keeps of its try: a person looks at it, and may take the step as done."""


@dataclass(slots=True)
class _Try:
    """How far a try has come: it may be repeated only from where it began. `reservation` is what it may spend.
    `halted`: what a step below it met that ends or suspends this one too."""

    reservation: str
    wall_seconds: float
    status: StepStatus = StepStatus.STARTED
    halted: Exception | None = None
    began: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def halt(self, error: Exception) -> None:
        self.halted = self.halted or error


@dataclass(frozen=True, slots=True)
class _Ready:
    """A step that may be carried out. `is_repeatable`: twice is as good as once."""

    tool: Tool
    arguments: ToolArguments
    is_repeatable: bool


@dataclass(frozen=True, slots=True)
class _Ended:
    """A try that came to its end, well where there is no error; else `effect` is what it has done outside, and
    `follows` what follows from that. `writes` settle what it took."""

    report: dict[str, Any]
    error: RunError | None
    writes: Sequence[Write]
    effect: Effect = Effect.NONE
    follows: Next = Next.AGAIN


class StepRunner:
    """Of one held run. `records` is the journal as it is, by step; it is kept up to date here. `may_defer`: whether a
    step's end is followed at once by something that is recorded."""

    def __init__(
        self,
        events: RunEvents,
        interruption: Interruption,
        people: People,
        step_tools: StepTools,
        records: dict[str, StepRecord],
        may_defer: Callable[[], bool],
    ) -> None:
        self.records = records
        self.interruption = interruption
        self._events = events
        self._people = people
        self._with = step_tools
        self._may_defer = may_defer
        self._owed: list[Write] = []
        self._reservations = itertools.count(1)
        self._tools_below = step_tools.tools.without(step_tools.disabled)
        output = step_tools.output
        self._lines = TokenBucket(output.lines_per_second, output.lines_burst, time.monotonic())

    async def run(self, step: Step) -> None:
        """Returns when it is completed. Raises StepFailed, StepUncertain, Suspended, BudgetExhausted (nothing was
        done), Interrupted or Superseded."""
        record = self.records[step.id]
        try:
            ready = await self._approved(step, record)
        except Refused as error:
            await self.fail(step, RunError(error.code, error.message, step=step.id))
        else:
            if self._was_in_doubt(record, ready.tool, is_repeatable=ready.is_repeatable):
                await self.ask_whether_done([step], step_effects.CUT_OFF)
            await self._carry_out(step, ready)

    def is_in_doubt(self, step: Step) -> bool:
        """Whether an earlier holder left it where it may have happened, and must not happen twice."""
        tool = self._with.tools.get(step.tool)
        if tool is None:
            return False
        is_repeatable = step.repeatable or tool.is_repeatable(step.arguments)
        return self._was_in_doubt(self.records[step.id], tool, is_repeatable=is_repeatable)

    def _was_in_doubt(self, record: StepRecord, tool: Tool, *, is_repeatable: bool) -> bool:
        return record.status in BEGUN and self._after_cut_off(tool, record.status, is_repeatable) is Next.ASK

    def _after_cut_off(self, tool: Tool, status: StepStatus, is_repeatable: bool) -> Next:
        effect = step_effects.of_cut_off(tool, status, isolated=self._is_isolated)
        return step_effects.after(effect, is_repeatable=is_repeatable)

    @property
    def _is_isolated(self) -> bool:
        return self._with.sandbox.isolation.isolated

    async def ask_whether_done(
        self,
        steps: Sequence[Step],
        reason: str,
        *writes: Write,
        effect: Effect = Effect.POSSIBLE,
        result: Mapping[str, Any] | None = None,
        trace: str = "",
    ) -> None:
        """Note that these may have happened, or have, and did not end well. `result`: what is known of the end of the
        one that there is. Raises StepUncertain."""
        message = step_effects.question([step.id for step in steps], self._with.redactor.text(reason), effect)
        error = RunError("step_uncertain", message, step=steps[0].id)
        kept = {**(result or {}), "error": error.as_dict()}
        await self._record(
            *(_end_of(step, StepStatus.UNCERTAIN, kept) for step in steps),
            *writes,
            tell=[self._told(step, StepStatus.UNCERTAIN, **kept) for step in steps],
        )
        for step in steps:
            self._change(step, status=StepStatus.UNCERTAIN, result=kept)
        raise StepUncertain(error, trace)

    async def fail(self, step: Step, error: RunError) -> None:
        """End it without carrying it out. Raises StepFailed."""
        report = {"exit_code": 1, "output": "", "duration_ms": 0, "files_changed": [], "error": error.as_dict()}
        await self._end(step, StepStatus.FAILED, _Ended(self._with.redactor.value(report), error, ()))
        raise StepFailed(error)

    def add(self, record: StepRecord) -> None:
        """A step below another one. It is entered in the journal together with the first that is said of it."""
        self.records[record.step_id] = record
        self._owed.append(lambda held: held.add_step(record))

    def leave(self) -> None:
        """No step is carried out any more: what is still owed is written with the run's next record."""
        owed, self._owed = self._owed, []
        for write in owed:
            self._events.defer(write)

    # --- before it is carried out ---

    async def _approved(self, step: Step, record: StepRecord) -> _Ready:
        """With the arguments as a person may have changed them. Raises Refused, Suspended."""
        raw = step.arguments if isinstance(step, SubStep) else fill(step, self.records)
        tool, arguments = self._with.tools.resolve(step.tool, raw, field=f"plan.{step.id}")
        by_tool = self._people.last_of_tool(step.id)
        if by_tool is not None:
            unless_open(by_tool, record)
        reason = why_ask(step, tool, self._with.approval, tool.may_cost_usd(arguments))
        if self._with.shows_only:
            reason = None
        last = self._people.last(step.id, DecisionKind.APPROVAL)
        shown = self._with.redactor.arguments(raw)
        if last is not None and last.asked["arguments"] == shown:
            unless_open(last, record)
            if last.status is not DecisionStatus.REJECTED:
                changed = (last.answer or {}).get("arguments")
                reason = None
                if changed is not None:
                    try:
                        tool, arguments = self._with.tools.resolve(step.tool, changed, field="decision")
                        raw = changed
                    except InvalidPlan as error:
                        reason = f"the arguments that were given instead do not fit ({error.message})"
        if reason is None:
            return _Ready(tool, arguments, step.repeatable or tool.is_repeatable(raw))
        asked = {"tool": step.tool, "arguments": shown, "reason": reason, "round": record.failed_tries}
        asked["schema"] = tool.arguments.model_json_schema()
        if (expired := self._people.expired_approval(step.id)) is not None:
            asked["reason"] = f"{reason}; the run was retried, and the approval before was for the time before"
            if (changed := (expired.answer or {}).get("arguments")) is not None:
                asked["earlier_arguments"] = self._with.redactor.arguments(changed)
        raise Suspended(await self._people.ask(step.id, DecisionKind.APPROVAL, asked, *self._debts()))

    # --- its tries ---

    async def _carry_out(self, step: Step, ready: _Ready) -> None:
        # What is only shown would be the same again; a step that has others below it goes the way that it went.
        retries = 0 if self._with.shows_only and not ready.tool.delegates else step.retry.max_attempts - 1
        policy = RetryPolicy(retries, step.retry.backoff_seconds, LONGEST_STEP_PAUSE_SECONDS)
        # The pause holds a slot of the worker: no server makes a step wait for longer than the step's own time.
        patience = float(step.timeout_seconds or self._with.limits.wall_seconds)
        for attempt in itertools.count(1):
            output = StepOutput(step.id, self._with.output, self._lines, self._events.emit)
            try:
                ended = await self._try(step, ready, output)
                error = ended.error
                if error is None:
                    await self._end(step, StepStatus.COMPLETED, ended)
                    await self._keep(output)
                    return
                if ended.follows is Next.ASK:
                    await self._keep(output)
                    known = {key: ended.report[key] for key in _KNOWN if key in ended.report}
                    await self.ask_whether_done([step], error.message, *ended.writes, effect=ended.effect, result=known)
                asked = error.retry_after
                draw = random.random()  # noqa: S311 - jitter, no secret
                pause = policy.pause(attempt, retryable=(asked or 0.0) <= patience, draw=draw, asked=asked)
                if ended.follows is Next.FAILED:
                    if pause is not None or error.retryable:
                        error = step_effects.not_tried_again(error, ready.tool)
                        ended = replace(ended, report={**ended.report, "error": error.as_dict()})
                    pause = None
                if pause is None:
                    await self._end(step, StepStatus.FAILED, ended)
                    await self._keep(output)
                    raise StepFailed(error)
                # It is known to have failed: whoever takes the run over in the pause need not ask.
                await self._end(step, StepStatus.PENDING, ended, pause_seconds=round(pause, 1))
                await self._keep(output)
            finally:
                output.discard()
            await self.interruption.pause(pause)

    async def _try(self, step: Step, ready: _Ready, output: StepOutput) -> _Ended:
        """One try, repeated while a part of the platform is away and repeating is safe."""
        tool, waits = ready.tool, pauses()
        while True:
            this = await self._begin(step, tool)
            output.restart()
            redacted = self._with.redactor.stream(output.write)
            files = StepCheckout(self._with.checkouts)
            failure: Exception | asyncio.CancelledError | None = None
            result = ToolResult()
            try:
                context = self._context(step, tool, this, files, redacted.write)
                result = await self.interruption.guard(tool.run(ready.arguments, context))
            except (Exception, asyncio.CancelledError) as error:
                failure = error
            finally:
                files.close()
                redacted.close(is_cut=failure is not None or result.exit_code != 0)
            seconds = this.seconds
            settled = self._settled(tool, this)
            paused = self._settled(tool, this, steps=0)
            if not isinstance(failure, Interrupted | Superseded | asyncio.CancelledError):
                failure = this.halted or failure

            match failure:
                case None:
                    pass
                case Superseded():
                    raise failure
                case Interrupted():
                    self._cut_off(step, output, seconds, settled, failure.cause)
                    raise failure
                case asyncio.CancelledError():
                    # A step above this one was interrupted.
                    self._cut_off(step, output, seconds, settled, self.interruption.cause)
                    raise failure
                case NeedsPerson():
                    self._count(step, "suspended", seconds)
                    raise Suspended(await self._ask_for(step, failure, paused))
                case Suspended() | StepUncertain() | BudgetExhausted():
                    self._count(step, "suspended", seconds)
                    await self._suspend(step, paused)
                    raise failure
                case Unavailable() if failure.part in PLATFORM_PARTS:
                    self._count(step, "unavailable", seconds)
                    # A sandbox that is away was never entered, or goes on with the same call when it is back.
                    if (
                        failure.part != "sandbox"
                        and self._after_cut_off(tool, this.status, ready.is_repeatable) is not Next.AGAIN
                    ):
                        await self.ask_whether_done([step], failure.message, settled)
                    self._owed.append(settled)
                    pause = next(waits)
                    self._warn(step, f"{failure.message}; trying again in {pause:.1f} s")
                    await self.interruption.pause(pause)
                    continue
                case PlatformError():
                    effect = step_effects.of_error(tool, failure, this.status, isolated=self._is_isolated)
                    result = ToolResult(
                        1, error=RunError(failure.code, failure.message, failure.retryable), effect=effect
                    )
                case ToolFault():
                    self._count(step, "failed", seconds)
                    self._owed.append(settled)
                    raise failure
                case _:
                    self._count(step, "failed", seconds)
                    fault, trace = step_effects.fault_of(tool, failure), "".join(traceback.format_exception(failure))
                    if self._after_cut_off(tool, this.status, ready.is_repeatable) is not Next.AGAIN:
                        await self.ask_whether_done([step], fault.message, settled, trace=trace)
                    self._owed.append(settled)
                    raise ToolFault(fault, trace) from failure
            return self._ended(step, ready, result, this.status, output, seconds, settled)

    def _cut_off(self, step: Step, output: StepOutput, seconds: float, settled: Write, cause: Cause | None) -> None:
        self._count(step, "interrupted", seconds)
        self._owed.append(settled)
        output.finish()
        if cause in (Cause.CANCELLED, Cause.TIMED_OUT):
            if output.is_incomplete:
                output.say_not_kept(f"the run was {cause}")
            self._events.emit(*self._told(step, "interrupted", reason=cause))

    async def _begin(self, step: Step, tool: Tool) -> _Try:
        """Note that it begins, and reserve what it may spend. Raises BudgetExhausted; then it has not begun."""
        wall = float(step.timeout_seconds or self._with.limits.wall_seconds)
        reserved = Amounts(steps=1)
        if self._with.budget.active and not tool.delegates:
            left = await self._with.budget.left(Resource.SECONDS)
            seconds = math.ceil(wall)
            if left is not None:
                seconds = max(min(seconds, left), 1)
                wall = min(wall, float(seconds))
            reserved = Amounts(steps=1, seconds=seconds)
        this = _Try(f"step-{next(self._reservations)}", wall)
        tries = self.records[step.id].tries + 1
        await self._record(
            self._with.budget.reserve(this.reservation, step.id, reserved),
            lambda held: held.begin_step(step.id, tries),
            tell=[self._told(step, StepStatus.STARTED)],
        )
        self._change(step, status=StepStatus.STARTED, tries=tries)
        this.began = time.monotonic()
        return this

    def _settled(self, tool: Tool, this: _Try, *, steps: int = 1) -> Write:
        """`steps` is 0 for a pause: the step is counted when it goes on. Else what a person adds would be taken by the
        step that paused, before the one below it for which it was needed."""
        seconds = 0 if tool.delegates else math.ceil(this.seconds)
        return self._with.budget.settle(this.reservation, Amounts(steps=steps, seconds=seconds))

    def _ended(
        self,
        step: Step,
        ready: _Ready,
        result: ToolResult,
        status: StepStatus,
        output: StepOutput,
        seconds: float,
        settled: Write,
    ) -> _Ended:
        succeeded = result.exit_code == 0 and result.error is None
        self._count(step, "completed" if succeeded else "failed", seconds)
        written = output.finish()
        if result.output is not None:
            written = output.cut(self._with.redactor.text(result.output))
        named = first_paths(result.files_changed)
        left_out = len(result.files_changed) - len(named) + result.files_left_out
        report = {
            "exit_code": result.exit_code,
            "output": written,
            **({"output_cut": True} if output.is_cut else {}),
            "duration_ms": round(seconds * 1000),
            "files_changed": named,
            **({"files_left_out": left_out} if left_out else {}),
        }
        if succeeded:
            return _Ended(self._with.redactor.value(report), None, [settled])
        effect, follows = self._after_failure(step, ready, result, status)
        error = result.error or RunError("step_failed", f"exit code {result.exit_code}")
        message = self._with.redactor.text(error.message)
        error = replace(error, message=message, step=step.id)
        report |= {"error": error.as_dict(), **step_effects.kept(effect, follows)}
        return _Ended(self._with.redactor.value(report), error, [settled], effect, follows)

    def _after_failure(self, step: Step, ready: _Ready, result: ToolResult, status: StepStatus) -> tuple[Effect, Next]:
        tool, isolated = ready.tool, self._is_isolated
        if not tool.delegates:
            effect = step_effects.of_result(tool, result, status, isolated=isolated)
            return effect, step_effects.after(effect, is_repeatable=ready.is_repeatable)
        # That it can be called again is said of the same try, which finds what was done below it.
        round, records = self.records[step.id].failed_tries, self.records.values()
        effect = step_effects.of_steps_below(step.id, records, self._with.tools.get, isolated=isolated, round=round)
        return effect, step_effects.after(effect, is_repeatable=step.repeatable)

    async def _ask_for(self, step: Step, needs: NeedsPerson, settled: Write) -> Decision:
        asked = self._with.redactor.value({**needs.asked, "by": BY_TOOL})
        asked["round"] = self.records[step.id].failed_tries
        decision = await self._people.ask(
            step.id, needs.kind, asked, *self._debts(), lambda held: held.suspend_step(step.id), settled
        )
        self._change(step, status=StepStatus.PENDING)
        return decision

    async def _suspend(self, step: Step, settled: Write) -> None:
        """Nothing of it is lost or in doubt: when it is called again, it finds what was done below it."""
        await self._record(lambda held: held.suspend_step(step.id), settled)
        self._change(step, status=StepStatus.PENDING)

    async def _keep(self, output: StepOutput) -> None:
        if output.is_incomplete:
            # The step's end first, so that it does not depend on the file; this also finds out newer hands.
            await self._record()
            await output.store(self._with.workspace, self._with.quota, self.interruption)

    def _context(
        self, step: Step, tool: Tool, this: _Try, files: StepCheckout, output: Callable[[bytes], None]
    ) -> ToolContext:
        async def about_to_change() -> None:
            self.interruption.changes_begin()
            await self._record(lambda held: held.step_is_changing(step.id))
            this.status = StepStatus.CHANGING
            self._change(step, status=StepStatus.CHANGING)

        limits, record = self._with.limits, self.records[step.id]
        said = self._people.last_of_tool(step.id)
        approved = self._people.last(step.id, DecisionKind.APPROVAL)
        return ToolContext(
            call=Call(self._with.user_id, self._with.run_id, step.id, self._with.generation, record.tries),
            workspace=self._with.workspace,
            checkout=files,
            sandbox=self._with.sandbox,
            quota=self._with.quota,
            limits=replace(
                limits,
                wall_seconds=this.wall_seconds,
                memory_bytes=step.limits.memory_bytes or limits.memory_bytes,
                cpus=step.limits.cpus or limits.cpus,
            ),
            output=output,
            notice=lambda line: self._warn(step, line),
            about_to_change=about_to_change,
            agent=self._with.agent,
            models=self._with.models,
            sub_steps=RunSubSteps(self, step, this.halt),
            secrets=self._with.secrets.of_tool(tool.name, [step.arguments, approved and approved.answer]),
            answer=said.answer if said and said.status is not DecisionStatus.REJECTED else None,
            parser=self._with.parser,
            round=record.failed_tries,
            attributes=self._with.attributes,
            tools=self._tools_below,
        )

    # --- what is written and told ---

    async def _end(self, step: Step, status: StepStatus, ended: _Ended, **told: Any) -> None:
        """Written together with what comes next (the following step's begin, the end of the run) where that follows at
        once."""
        report = ended.report
        record = self.records[step.id]
        failed = record.failed_tries + (ended.error is not None)
        files = self._with.take_changes(record.files)
        attributes = self._with.take_attributes(record.attributes)
        end = _end_of(step, status, report, files, failed, attributes)
        retried = "retrying" if status is StepStatus.PENDING else status
        event = self._told(step, retried, **report, **told)
        if status is not StepStatus.PENDING and not isinstance(step, SubStep) and self._may_defer():
            for write in (*self._debts(), end, *ended.writes):
                self._events.defer(write)
            self._events.emit(*event)
        else:
            await self._record(end, *ended.writes, tell=[event])
        self._change(
            step,
            status=status,
            result=report,
            failed_tries=failed,
            files=files,
            attributes=attributes,
            finished_at=datetime.now(UTC),
        )

    async def _record(self, *writes: Write, tell: Sequence[Told] = ()) -> None:
        owed = self._debts()
        try:
            await self._events.record(*owed, *writes, tell=tell)
        except BudgetExhausted:
            self._owed = [*owed, *self._owed]
            raise

    def _debts(self) -> list[Write]:
        """What tries that were cut off took, for the next record."""
        owed, self._owed = self._owed, []
        return owed

    def _change(self, step: Step, **values: Any) -> None:
        self.records[step.id] = replace(self.records[step.id], **values)

    def _told(self, step: Step, status: str, **more: Any) -> Told:
        # The output has been told line by line.
        told = {key: value for key, value in more.items() if key not in ("output", "output_cut")}
        return EventType.STEP, {"step": step.id, "title": step.title, "tool": step.tool, "status": status, **told}

    def _warn(self, step: Step, line: str) -> None:
        said = self._with.redactor.text(line)
        self._events.emit(EventType.LOG, {"line": said, "step": step.id, "level": "warning"})

    def _count(self, step: Step, outcome: StepEnd, seconds: float) -> None:
        self._with.metrics.step_ended(step.tool, outcome, seconds)


def _end_of(
    step: Step,
    status: StepStatus,
    result: dict[str, Any],
    files: Mapping[str, str | None] | None = None,
    failed_tries: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Write:
    return lambda held: held.end_step(step.id, status, result, files, failed_tries, attributes)
