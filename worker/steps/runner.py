"""One step, from the check whether it may be carried out to its end in the journal.

    fill in → approve → (begin → invoke → decide → apply), as often as its retries allow

What each part does is elsewhere: who has to approve it (`worker.steps.approval`), what is written and published
(`worker.steps.journal`), and what follows from a call that has ended (`worker.steps.attempt`). What a step was doing
when its worker was lost is judged by how far the journal has it:

    started    nothing has reached the workspace, or outside where the tool announces that
    changing   changes were on their way
    otherwise  it has ended, or a person is asked: it is `uncertain`

A step that finds a part of the platform away is repeated under the same rule until the run's time is up. A service
outside of the platform that is away (an MCP server, what a plug-in speaks with) ends the try. Sub-steps
(`worker.steps.sub_steps`) are carried out here too.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.plans import EffectStep, Step, SubStep
from backplane.domain.retry import RetryPolicy
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import BudgetExhausted, Refused, Superseded
from backplane.process.retrying import pauses
from worker.files.checkouts import StepCheckout
from worker.run.decisions import asked_for_budget
from worker.run.events import Write
from worker.run.interruption import Cause, Interrupted
from worker.sandbox.base import Call
from worker.steps import effects as step_effects
from worker.steps.approval import ApprovalGate, EarlierDecisions, Ready
from worker.steps.attempt import (
    AskWhetherDone,
    Attempt,
    Broken,
    CallEnded,
    CutOff,
    Facts,
    NeedsAnswer,
    Suspend,
    WaitForPart,
    decide,
    is_in_doubt,
    next_try,
)
from worker.steps.context import CallContext, RunContext
from worker.steps.effects import Next
from worker.steps.journal import Begun, StepJournal
from worker.steps.outcomes import StepFailed, Suspended
from worker.steps.output import StepOutput, TokenBucket, first_paths
from worker.steps.references import fill
from worker.steps.sub_steps import RunSubSteps
from worker.tools.base import Effect
from worker.tools.registry import ToolRegistry

LONGEST_STEP_PAUSE_SECONDS = 300.0
_KNOWN = ("output", "output_cut", "duration_ms", "files_changed", "files_left_out", "effect")
"""What the result of an uncertain step keeps of its try: a person looks at it, and may take the step as done."""


class StepRunner:
    """Carries out the steps of one running run with its `tools`. `records` is the journal by step id; it is kept up to
    date here. `may_defer`: whether a step's end is followed at once by something that is recorded. `below`: the tools
    that sub-steps may use, where those are others."""

    def __init__(
        self,
        context: RunContext,
        tools: ToolRegistry,
        records: dict[str, StepRecord],
        may_defer: Callable[[], bool],
        below: ToolRegistry | None = None,
    ) -> None:
        rules = context.rules.steps
        self.records = records
        self.interruption = context.interruption
        self.journal = StepJournal(context, records, may_defer)
        self._context = context
        self._tools = tools
        self._tools_below = (tools if below is None else below).without(rules.disabled)
        self._gate = ApprovalGate(None if context.shows_only else rules.approval, tools, context.redactor.arguments)
        self._lines = TokenBucket(rules.output.lines_per_second, rules.output.lines_burst, time.monotonic())

    async def run(self, step: Step) -> None:
        """Carry the step out; returns when it is completed. Raises StepFailed, StepUncertain, Suspended,
        BudgetExhausted (nothing was done), Interrupted or Superseded."""
        try:
            ready = await self._approved(step)
        except Refused as error:
            await self.journal.fail(step, RunError(error.code, error.message, step=step.id))
        else:
            if self._was_in_doubt(step, ready):
                await self.journal.ask_whether_done([step], step_effects.CUT_OFF)
            await self._carry_out(step, ready)

    def add(self, record: StepRecord) -> None:
        """Add a sub-step."""
        self.journal.add(record)

    async def ask_for_budget(self, step_id: str, error: BudgetExhausted) -> Decision | None:
        """The open question whether the budget is raised, for a step or (empty) for the planner; None: a person has
        refused."""
        decisions, record = self._context.decisions, self.records.get(step_id)
        last = decisions.last(step_id, DecisionKind.BUDGET)
        if last is not None and last.status is DecisionStatus.PENDING:
            return last
        # A planner has no tries: the answer counts for the next claim, and a retried run asks anew.
        generation = self._context.run.generation
        asked_in, answered_in = (generation, generation - 1) if record is None else (record.failed_tries,) * 2
        if last is not None and last.status is DecisionStatus.REJECTED and last.asked.get("round") == answered_in:
            return None
        return await decisions.ask(step_id, DecisionKind.BUDGET, asked_for_budget(error, asked_in))

    def is_in_doubt(self, step: Step) -> bool:
        """Whether the step may have happened on an earlier worker, and must not happen twice."""
        tool = self._tools.get(step.tool)
        if tool is None:
            return False
        return is_in_doubt(
            tool,
            self.records[step.id].status,
            is_repeatable=step.repeatable or tool.is_repeatable(step.arguments),
            is_isolated=self._context.is_isolated,
        )

    def _was_in_doubt(self, step: Step, ready: Ready) -> bool:
        return is_in_doubt(
            ready.tool,
            self.records[step.id].status,
            is_repeatable=ready.is_repeatable,
            is_isolated=self._context.is_isolated,
        )

    async def _approved(self, step: Step) -> Ready:
        """The step with the arguments that a person may have changed. Raises Refused, Suspended."""
        arguments = step.arguments if isinstance(step, SubStep | EffectStep) else fill(step, self.records)
        decisions = self._context.decisions
        earlier = EarlierDecisions(
            decisions.last_of_tool(step.id),
            decisions.last(step.id, DecisionKind.APPROVAL),
            decisions.expired_approval(step.id),
        )
        found = self._gate.judge(step, arguments, self.records[step.id], earlier)
        if isinstance(found, Ready):
            return found
        raise Suspended(await self.journal.ask_for_approval(step, found.asked))

    # --- its tries ---

    async def _carry_out(self, step: Step, ready: Ready) -> None:
        # What is only shown would be the same again; a step that has others below it goes the way that it went.
        is_shown = self._context.shows_only and not ready.tool.delegates
        retries = 0 if is_shown else step.retry.max_attempts - 1
        policy = RetryPolicy(retries, step.retry.backoff_seconds, LONGEST_STEP_PAUSE_SECONDS)
        for number in itertools.count(1):
            output = StepOutput(step.id, self._context.rules.steps.output, self._lines, self._context.events.emit)
            try:
                pause = await self._try(step, ready, output, policy, number)
            finally:
                output.discard()
            if pause is None:
                return
            await self.interruption.pause(pause)

    async def _try(
        self, step: Step, ready: Ready, output: StepOutput, policy: RetryPolicy, number: int
    ) -> float | None:
        """Carry out one try. Returns the seconds until the next try; None: the step is completed."""
        ended, settled, seconds = await self._until_ended(step, ready, output)
        error, report = self._report(step, ended, output, seconds)
        if error is None:
            await self.journal.end(step, StepStatus.COMPLETED, report, [settled])
            await self._keep(output)
            return None
        if ended.follows is Next.ASK:
            await self._keep(output)
            known = {key: report[key] for key in _KNOWN if key in report}
            await self.journal.ask_whether_done([step], error.message, settled, effect=ended.effect, result=known)
        kept, pause = next_try(
            ended,
            error,
            ready.tool,
            number,
            policy,
            draw=random.random(),  # noqa: S311 - jitter, no secret
            # The pause takes a slot of the worker: no server makes a step wait for longer than the step's own time.
            patience_seconds=float(step.timeout_seconds or self._context.rules.steps.limits.wall_seconds),
        )
        if kept is not error:
            report = {**report, "error": kept.as_dict()}
        if pause is None:
            await self.journal.end(step, StepStatus.FAILED, report, [settled])
            await self._keep(output)
            raise StepFailed(kept)
        # It is written that the try has failed, so a worker that takes the run over in the pause need not ask.
        await self.journal.end(step, StepStatus.PENDING, report, [settled], pause_seconds=round(pause, 1))
        await self._keep(output)
        return pause

    async def _until_ended(self, step: Step, ready: Ready, output: StepOutput) -> tuple[CallEnded, Write, float]:
        """Carry out one try, repeated while a part of the platform is away and repeating is safe. Returns how it ended
        and its seconds. Raises what ends or suspends the step otherwise."""
        waits = pauses()
        while True:
            begun = await self.journal.begin(step, ready.tool)
            attempt = await self._invoke(step, ready, begun, output)
            verdict = decide(attempt, self._facts(step, ready))
            self._context.worker.metrics.step_ended(step.tool, verdict.outcome, attempt.seconds)
            settled = self.journal.settled(ready.tool, begun, attempt.seconds)
            match verdict:
                case CallEnded():
                    return verdict, settled, attempt.seconds
                case WaitForPart(error):
                    self.journal.write_later(settled)
                    pause = next(waits)
                    self.journal.warn(step, f"{error.message}; trying again in {pause:.1f} s")
                    await self.interruption.pause(pause)
                case NeedsAnswer() | Suspend():
                    paused = self.journal.settled(ready.tool, begun, attempt.seconds, steps=0)
                    await self._suspend(step, verdict, paused)
                case _:
                    await self._stop(step, verdict, settled, output)

    async def _invoke(self, step: Step, ready: Ready, begun: Begun, output: StepOutput) -> Attempt:
        """Call the tool, until it ends or is interrupted. What the tool raises is returned."""
        output.restart()
        redacted = self._context.redactor.stream(output.write)
        checkout = StepCheckout(self._context.files.checkouts)
        failure: Exception | asyncio.CancelledError | None = None
        result = None
        try:
            context = self._call_context(step, ready, begun, checkout, redacted.write)
            result = await self.interruption.guard(ready.tool.run(ready.arguments, context))
        except (Exception, asyncio.CancelledError) as error:
            failure = error
        finally:
            checkout.close()
            redacted.close(is_cut=result is None or result.exit_code != 0)
        if begun.halted is not None and not _ends_the_run(failure):
            failure = begun.halted
        return Attempt(begun.status, begun.seconds, result, failure, self.interruption.cause)

    def _facts(self, step: Step, ready: Ready) -> Facts:
        below = Effect.NONE
        if ready.tool.delegates:
            below = step_effects.of_steps_below(
                step.id,
                self.records.values(),
                self._tools.get,
                isolated=self._context.is_isolated,
                round=self.records[step.id].failed_tries,
            )
        return Facts(ready.tool, ready.is_repeatable, step.repeatable, self._context.is_isolated, below)

    async def _suspend(self, step: Step, verdict: NeedsAnswer | Suspend, paused: Write) -> NoReturn:
        """Raises Suspended, or the error of the sub-step."""
        if isinstance(verdict, NeedsAnswer):
            raise Suspended(await self.journal.ask_for_tool(step, verdict.needs, paused))
        await self.journal.suspend(step, paused)
        raise verdict.error

    async def _stop(
        self, step: Step, verdict: AskWhetherDone | Broken | CutOff, settled: Write, output: StepOutput
    ) -> NoReturn:
        """Write down a try that did not end by itself. Raises the error that stopped it."""
        if isinstance(verdict, AskWhetherDone):
            await self.journal.ask_whether_done([step], verdict.reason, settled, trace=verdict.trace)
        self.journal.write_later(settled)
        if isinstance(verdict, Broken):
            raise verdict.error from verdict.source
        output.finish()
        if verdict.cause in (Cause.CANCELLED, Cause.TIMED_OUT):
            if output.is_incomplete:
                output.report_not_kept(f"the run was {verdict.cause}")
            self.journal.interrupted(step, verdict.cause)
        raise verdict.error

    def _report(
        self, step: Step, ended: CallEnded, output: StepOutput, seconds: float
    ) -> tuple[RunError | None, dict[str, Any]]:
        """The error as people see it, and the step's result as the journal keeps it."""
        result, redactor = ended.result, self._context.redactor
        written = output.finish()
        if result.output is not None:
            written = output.cut(redactor.text(result.output))
        named = first_paths(result.files_changed)
        left_out = len(result.files_changed) - len(named) + result.files_left_out
        report = {
            "exit_code": result.exit_code,
            "output": written,
            **({"output_cut": True} if output.is_cut else {}),
            **({} if result.value is None else {"value": result.value}),
            "duration_ms": round(seconds * 1000),
            "files_changed": named,
            **({"files_left_out": left_out} if left_out else {}),
        }
        error = ended.error
        if error is not None:
            error = replace(error, message=redactor.text(error.message), step=step.id)
            report |= {"error": error.as_dict(), **step_effects.kept(ended.effect, ended.follows)}
        return error, redactor.value(report)

    async def _keep(self, output: StepOutput) -> None:
        if output.is_incomplete:
            # The step's end first, so that it does not depend on the file; this also finds out another worker.
            await self.journal.flush()
            await output.store(self._context.files.workspace, self._context.rules.files.quota, self.interruption)

    def _call_context(
        self,
        step: Step,
        ready: Ready,
        begun: Begun,
        checkout: StepCheckout,
        output: Callable[[bytes], None],
    ) -> CallContext:
        context, record, run = self._context, self.records[step.id], self._context.run
        limits = context.rules.steps.limits
        approved = context.decisions.last(step.id, DecisionKind.APPROVAL)
        return CallContext(
            run=context,
            call=Call(run.user_id, run.id, step.id, run.generation, record.tries),
            checkout=checkout,
            limits=replace(
                limits,
                wall_seconds=begun.wall_seconds,
                memory_bytes=step.limits.memory_bytes or limits.memory_bytes,
                cpus=step.limits.cpus or limits.cpus,
            ),
            secrets=context.access.secrets.of_tool(ready.tool.name, [step.arguments, approved and approved.answer]),
            tools=self._tools_below,
            port=_StepPort(self, step, begun, output, _answer(context.decisions.last_of_tool(step.id))),
        )


class _StepPort:
    """What a call of a tool may ask of the step that it carries out."""

    def __init__(
        self,
        runner: StepRunner,
        step: Step,
        begun: Begun,
        output: Callable[[bytes], None],
        answer: Mapping[str, Any] | None,
    ) -> None:
        self.sub_steps = RunSubSteps(runner, step, begun.halt)
        self.answer = answer
        self.round = runner.records[step.id].failed_tries
        self.output = output
        self._journal = runner.journal
        self._step = step
        self._begun = begun

    def notice(self, line: str, /) -> None:
        self._journal.warn(self._step, line)

    async def about_to_change(self) -> None:
        await self._journal.changes_begin(self._step, self._begun)


def _answer(decision: Decision | None) -> Mapping[str, Any] | None:
    return decision.answer if decision and decision.status is not DecisionStatus.REJECTED else None


def _ends_the_run(failure: BaseException | None) -> bool:
    return isinstance(failure, Interrupted | Superseded | asyncio.CancelledError)
