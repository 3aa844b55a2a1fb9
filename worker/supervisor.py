"""The supervisor: walks a plan, one step after another, and keeps the journal.

Each step is noted before and after. A run that is taken over goes on at the first step without a result. What a step
was doing when its worker was lost decides whether it is repeated:

    started    nothing has reached the workspace: repeated if the tool, the plan or the sandbox's isolation make it safe
    changing   changes were on their way: repeated only if the tool or the plan says that this is safe
    otherwise  nobody guesses: the step is `uncertain` and the run waits for a person

A step that finds a part of the platform away is repeated under the same rule until the run's time is up.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from backplane.errors import InvalidPlan, PlatformError, Superseded, Unavailable
from backplane.events import EventType
from backplane.patience import pauses
from backplane.plans import Plan, Step
from backplane.retry import RetryPolicy
from backplane.runs import RunError
from backplane.store.journal import StepRecord, StepStatus
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.checkout import Checkout
from worker.interruption import Cause, Interrupted, Interruption
from worker.line_rate import TokenBucket
from worker.metrics import WorkerMetrics
from worker.run_events import RunEvents, Write
from worker.sandbox.base import Call, Limits, Sandbox
from worker.step_output import OutputLimits, StepOutput
from worker.tools.base import StepReport, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.registry import ToolRegistry

LONGEST_STEP_PAUSE_SECONDS = 300.0


class StepFailed(Exception):
    """A step failed for good; the run cannot go on."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class StepUncertain(Exception):
    """It is not known whether a step happened, and repeating it may not be safe."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class StepTools:
    """What the steps of one run work with. `limits` hold for steps that name none of their own, up to the most."""

    user_id: str
    run_id: str
    agent: str
    generation: int
    tools: ToolRegistry
    workspace: Workspace
    checkout: Checkout
    sandbox: Sandbox
    quota: Quota
    limits: Limits
    most_memory_bytes: int
    most_cpus: float
    output: OutputLimits
    metrics: WorkerMetrics


class Supervisor:
    def __init__(self, events: RunEvents, interruption: Interruption, step_tools: StepTools) -> None:
        self._events = events
        self._interruption = interruption
        self._with = step_tools
        output = step_tools.output
        self._lines = TokenBucket(output.lines_per_second, output.lines_burst, time.monotonic())

    def check(self, plan: Plan) -> None:
        """Raises InvalidPlan when a step names a tool that is not there, arguments that it does not take, or limits
        over what a step may have."""
        for index, step in enumerate(plan.steps):
            field = f"plan.steps.{index}"
            self._with.tools.resolve(step.tool, step.arguments, field=field)
            asked = {
                "memory_bytes": (step.limits.memory_bytes, self._with.most_memory_bytes, "SANDBOX_MEMORY_MAX_BYTES"),
                "cpus": (step.limits.cpus, self._with.most_cpus, "SANDBOX_CPUS_MAX"),
            }
            for name, (wanted, most, setting) in asked.items():
                if wanted is not None and wanted > most:
                    where = f"{field}.limits.{name}"
                    raise InvalidPlan(f"{where}: a step may have at most {most:,} ({setting})", field=where)

    async def carry_out(self, plan: Plan, journal: Sequence[StepRecord]) -> None:
        """Returns when every step is done. Raises StepFailed, StepUncertain, Interrupted or Superseded."""
        records = {record.step_id: record for record in journal}
        for step in plan.ordered():
            record = records[step.id]
            if record.status in (StepStatus.COMPLETED, StepStatus.SKIPPED):
                continue
            self._interruption.check()
            tool, arguments = self._with.tools.resolve(step.tool, step.arguments, field=f"plan.{step.id}")
            if record.status in (StepStatus.STARTED, StepStatus.CHANGING) and not self._may_repeat(
                step, tool, record.status
            ):
                await self._ask(step, "the worker was lost")
            await self._step(step, tool, arguments, tries=record.tries)

    def _may_repeat(self, step: Step, tool: Tool, status: StepStatus) -> bool:
        untouched = status is StepStatus.STARTED and self._with.sandbox.isolation.isolated
        return step.repeatable or tool.repeatable or untouched

    async def _ask(self, step: Step, reason: str) -> NoReturn:
        error = RunError(
            "step_uncertain",
            f"{reason} while step {step.id!r} ran, and it may or may not have happened. Look at the "
            'workspace, then retry the run with uncertain_step "repeat" or "done", or cancel it. Mark steps that are '
            "safe to carry out twice as repeatable to avoid the question.",
            step=step.id,
        )
        self._events.hold_back()
        self._tell(step, StepStatus.UNCERTAIN, error=error.as_dict())
        result = {"error": error.as_dict()}
        await self._events.record(_end_of(step, StepStatus.UNCERTAIN, result))
        raise StepUncertain(error)

    async def _step(self, step: Step, tool: Tool, arguments: ToolArguments, tries: int) -> None:
        policy = RetryPolicy(step.retry.max_attempts - 1, step.retry.backoff_seconds, LONGEST_STEP_PAUSE_SECONDS)
        attempt = 1
        while True:
            tries += 1
            output = StepOutput(step.id, self._with.output, self._lines, self._events.emit)
            try:
                result, report = await self._try(step, tool, arguments, tries, output)
                if result.exit_code == 0 and result.error is None:
                    self._note(step, StepStatus.COMPLETED, report)
                    await self._keep(output)
                    return
                error = result.error or RunError("step_failed", f"exit code {result.exit_code}")
                error = RunError(error.code, error.message, error.retryable, step.id)
                report = {**report, "error": error.as_dict()}
                pause = policy.pause(attempt, retryable=True, draw=random.random())  # noqa: S311 - jitter, no secret
                if pause is None:
                    self._note(step, StepStatus.FAILED, report)
                    await self._keep(output)
                    raise StepFailed(error)
                self._events.hold_back()
                self._tell(step, "retrying", **report, pause_seconds=round(pause, 1))
                # It is known to have failed: whoever takes the run over in the pause need not ask.
                await self._events.record(_end_of(step, StepStatus.PENDING, report))
                await self._keep(output)
            finally:
                output.discard()
            await self._interruption.pause(pause)
            attempt += 1

    async def _keep(self, output: StepOutput) -> None:
        if output.is_incomplete:
            # The step's end first, so that it does not depend on the file; this also finds out newer hands.
            await self._events.record()
            await output.store(self._with.workspace, self._with.quota, self._interruption)

    async def _try(
        self, step: Step, tool: Tool, arguments: ToolArguments, tries: int, output: StepOutput
    ) -> tuple[ToolResult, dict[str, Any]]:
        """One try, repeated while a part of the platform is away and repeating is safe."""
        waits = pauses()
        while True:
            self._events.hold_back()
            self._tell(step, StepStatus.STARTED)
            await self._events.record(lambda held: held.begin_step(step.id, tries))
            state = _StepState()
            output.restart()
            started = time.monotonic()
            try:
                context = self._context(step, tries, state, output)
                result = await self._interruption.guard(tool.run(arguments, context))
            except Unavailable as error:
                self._with.metrics.step_ended(step.tool, "unavailable", time.monotonic() - started)
                # A sandbox that is away was never entered, or goes on with the same call when it is back.
                if error.part != "sandbox" and not self._may_repeat(step, tool, state.status):
                    await self._ask(step, error.message)
                pause = next(waits)
                self._warn(step, f"{error.message}; trying again in {pause:.1f} s")
                await self._interruption.pause(pause)
                continue
            except Superseded:
                raise
            except PlatformError as error:
                result = ToolResult(1, error=RunError(error.code, error.message, error.retryable))
            except Interrupted as interrupted:
                self._with.metrics.step_ended(step.tool, "interrupted", time.monotonic() - started)
                output.finish()
                if interrupted.cause in (Cause.CANCELLED, Cause.TIMED_OUT):
                    if output.is_incomplete:
                        output.say_not_kept(f"the run was {interrupted.cause}")
                    self._tell(step, "interrupted", reason=interrupted.cause)
                raise
            except Exception:
                self._with.metrics.step_ended(step.tool, "failed", time.monotonic() - started)
                raise
            seconds = time.monotonic() - started
            succeeded = result.exit_code == 0 and result.error is None
            self._with.metrics.step_ended(step.tool, "completed" if succeeded else "failed", seconds)
            return result, {
                "exit_code": result.exit_code,
                "output": output.finish(),
                "duration_ms": round(seconds * 1000),
                "files_changed": list(result.files_changed),
            }

    def _context(self, step: Step, tries: int, state: "_StepState", output: StepOutput) -> ToolContext:
        async def about_to_change() -> None:
            self._interruption.changes_begin()
            await self._events.record(lambda held: held.step_is_changing(step.id))
            state.status = StepStatus.CHANGING

        limits = self._with.limits
        return ToolContext(
            call=Call(self._with.user_id, self._with.run_id, step.id, self._with.generation, tries),
            workspace=self._with.workspace,
            checkout=self._with.checkout,
            sandbox=self._with.sandbox,
            quota=self._with.quota,
            limits=replace(
                limits,
                wall_seconds=step.timeout_seconds or limits.wall_seconds,
                memory_bytes=step.limits.memory_bytes or limits.memory_bytes,
                cpus=step.limits.cpus or limits.cpus,
            ),
            output=output.write,
            notice=lambda line: self._warn(step, line),
            about_to_change=about_to_change,
            agent=self._with.agent,
            models=None,
            sub_steps=_None(),
            secrets=_None(),
            answer=None,
        )

    def _note(self, step: Step, status: StepStatus, report: dict[str, Any]) -> None:
        """Written together with what comes next: the following step's begin, or the end of the run."""
        self._events.defer(_end_of(step, status, report))
        self._tell(step, status, **report)

    def _tell(self, step: Step, status: str, **more: Any) -> None:
        # The output has been told line by line.
        told = {key: value for key, value in more.items() if key != "output"}
        whole = {"step": step.id, "title": step.title, "tool": step.tool, "status": status, **told}
        self._events.emit(EventType.STEP, whole)

    def _warn(self, step: Step, line: str) -> None:
        self._events.emit(EventType.LOG, {"line": line, "step": step.id, "level": "warning"})


def _end_of(step: Step, status: StepStatus, result: dict[str, Any]) -> Write:
    return lambda held: held.end_step(step.id, status, result)


class _None:
    async def run(self, step: Step) -> StepReport:
        raise NotImplementedError

    async def fill(self, text: str, *, host: str | None = None) -> str:
        return text


@dataclass(slots=True)
class _StepState:
    """How far a try has come: it may be repeated only from where it began."""

    status: StepStatus = StepStatus.STARTED
