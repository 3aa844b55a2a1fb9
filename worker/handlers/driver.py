"""Carries out a run by code: a handler, or the role of an agent.

The code is run from its start each time: when the run is taken first, after a crash, and after it slept or waited.
Each effect that it asks for is numbered in the order of asking. One that the journal has is not carried out again; it
must be the same as there, or the run ends with `journal_diverged`. Any other is a step, carried out as a plan's is
(`worker.steps.runner`), so that the journal, approvals, budgets, limits and checkouts are those of plans.

An effect that cannot go on yet (a person, another run, a time) is blocked. When nothing but blocked effects is left,
the code is cancelled, and the run waits without a worker. What the code does outside of effects is done again each
time.
"""

import asyncio
import traceback
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from backplane.domain.bus import WaitStatus
from backplane.domain.events import EventType
from backplane.domain.plans import Step
from backplane.domain.runs import RunError
from backplane.domain.sizes import readable_size
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import BudgetExhausted, InvalidInput
from backplane.process.loop_watchdog import blocks_reported
from backplane.settings import fixed
from worker.handlers.children import ChildRuns
from worker.handlers.code import CarryOut, Code, OpenEffect, given, in_words_blocked, step_of
from worker.handlers.events import AwaitedEvents, event_of
from worker.handlers.run import APPROVE, RESULT, SLEEP, START, WAIT_EVENT, EffectRequest, StepError
from worker.handlers.tools import ApproveTool, FunctionTool, ModelTool, in_words
from worker.handlers.values import NotStorable, as_json, digest_of, due_after, kept_bytes
from worker.handlers.waiting import Blocked, EffectStopped, EffectWaits
from worker.steps.context import RunContext
from worker.steps.outcomes import StepFailed, StepUncertain, Suspended, ToolFault
from worker.steps.runner import StepRunner
from worker.steps.supervisor import graver
from worker.tools.registry import ToolRegistry

log = structlog.get_logger()

SETTLE_SECONDS = 0.05
"""How long a handler whose effects are all blocked may take to ask for another one."""
WRITTEN_SECONDS = 0.005
"""How long the end of an effect may wait to be written together with the begin of the next."""
AT_ONCE_SECONDS = 1.0
"""For a time up to this the run keeps its worker."""
ENDING_SECONDS = 5.0
"""How long a handler may take to end when it is cancelled."""

_OVER = (StepStatus.COMPLETED, StepStatus.FAILED)
_GIVEN = frozenset({"handler", "input", "prompt", "plan", "queue"})
"""What a run that is started is given, but for numbers."""


class HandlerDriver:
    """Runs the code of one running run once, from its start. `records` is the journal by step id; it is kept up to
    date here."""

    def __init__(
        self,
        context: RunContext,
        tools: ToolRegistry,
        code: Code,
        records: dict[str, StepRecord],
        children: ChildRuns,
        awaited: AwaitedEvents,
    ) -> None:
        self.records = records
        self._context = context
        self._code = code
        self._children = children
        self._awaited = awaited
        self._interruption = context.interruption
        self._requests: dict[str, EffectRequest] = {}
        model = ModelTool(self._requests, context.rules.steps.model_output_tokens)
        own = (FunctionTool(self._requests), ApproveTool(), model)
        self._tools = tools.with_tools(own)
        self._runner = StepRunner(context, self._tools, records, self._may_defer, below=tools)
        self._room = asyncio.Semaphore(context.rules.steps.concurrency)
        self._position = max((record.position for record in records.values()), default=-1)
        self._kept_bytes = sum(kept_bytes(record.result) for record in records.values())
        self._by_ordinal = {record.ordinal: record for record in records.values() if record.ordinal is not None}
        self._last_recorded = max(self._by_ordinal, default=0)
        self._ordinal = 0
        self._not_awaited: set[int] = set()
        self._started: dict[str, str] = {}
        self._blocked = Blocked()
        self._stop: Exception | None = None
        self._running: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._writing: asyncio.TimerHandle | None = None
        self._is_over = False
        self._carriers: dict[str, CarryOut] = {
            SLEEP: self._sleep,
            START: self._start,
            RESULT: self._wait_for_run,
            WAIT_EVENT: self._wait_for_event,
            **code.effects,
        }

    async def carry_out(self) -> Any:
        """What the code returns, as JSON. Raises StepFailed, StepUncertain, ToolFault, RunWaits, Sleeps,
        WaitsForRuns, Interrupted or Superseded. It is called once."""
        self._look_at_what_is_uncertain()
        self._note_code()
        try:
            return await self._interruption.guard(self._carry_out())
        finally:
            self._written()
            self._runner.journal.hand_over()

    def _look_at_what_is_uncertain(self) -> None:
        for record in sorted(self.records.values(), key=lambda record: record.position):
            error = (record.result or {}).get("error")
            if record.status is StepStatus.UNCERTAIN and error:
                raise StepUncertain(RunError(**error))

    def _note_code(self) -> None:
        """Keep which code the run began with; where it is another one by now, its log says so."""
        before, now = self._context.run.handler_code, self._code.digest
        if before is None:
            self._runner.journal.write_later(lambda transaction: transaction.begin_with_code(now))
        elif before != now:
            self._warn(
                f"the code of {self._code.title} has changed since the run began ({before[:8]}, now "
                f"{now[:8]}); the run goes on where it asks for the same"
            )

    # --- the handler itself ---

    async def _carry_out(self) -> Any:
        handling = asyncio.create_task(self._call(self._code.begin(self)), name=self._code.title)
        handling.add_done_callback(lambda _: self._changed.set())
        try:
            await self._until_over(handling)
        finally:
            await self._end(handling)
        if handling.cancelled():
            raise StepFailed(RunError(self._code.failed, f"{self._code.title} has cancelled itself"))
        error = handling.exception()
        if error is not None:
            raise self._failed(error)
        if self._not_awaited:
            numbers = ", ".join(map(str, sorted(self._not_awaited)[:5]))
            self._warn(
                f"not carried out, since the code did not await them: {len(self._not_awaited)} effects ({numbers})"
            )
        if self._ordinal < self._last_recorded:
            missing = self._by_ordinal.get(self._ordinal + 1)
            asked = f"{missing.step_id!r} ({missing.tool}, {missing.title})" if missing else "another one"
            raise self._diverged(f"effect {self._ordinal + 1} was {asked}, and the code ended before it")
        try:
            return as_json(handling.result(), f"what {self._code.title} returned")
        except NotStorable as error:
            raise StepFailed(RunError("result_not_storable", str(error))) from None

    async def _call(self, code: Coroutine[Any, Any, Any]) -> Any:
        try:
            with blocks_reported(self._warn_blocked, self._code.file, self._context.run.id):
                return await code
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"the code raised {type(error).__name__}") from error

    async def _until_over(self, handling: "asyncio.Task[Any]") -> None:
        """Until the handler has ended. Raises what stops it, once no effect is under way."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._running:
                continue
            if self._stop is not None:
                raise self._stop
            if handling.done():
                return
            if self._blocked:
                try:
                    async with asyncio.timeout(SETTLE_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    raise self._blocked.error() from None

    async def _end(self, handling: "asyncio.Task[Any]") -> None:
        """End the handler, whatever it makes of that; effects that are under way end by themselves before."""
        while self._running:
            self._changed.clear()
            await self._changed.wait()
        self._is_over = True
        if not handling.done():
            handling.cancel()
            await asyncio.wait({handling}, timeout=ENDING_SECONDS)
            if not handling.done():
                self._warn(f"{self._code.title} does not end when it is cancelled, and is left behind")
                log.error("code does not end when it is cancelled", code=self._code.title)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _failed(self, error: BaseException) -> Exception:
        if isinstance(error, StepError):
            return StepFailed(error.error)
        if isinstance(error, StepFailed):
            return error
        cause = _failed_effect(error)
        step = cause.step if cause is not None else None
        trace = "".join(traceback.format_exception(error))
        return ToolFault(RunError(self._code.failed, f"{self._code.name}: {in_words(error)}", step=step), trace)

    # --- what the handler asks for (`worker.handlers.run.Driver`) ---

    @property
    def is_replaying(self) -> bool:
        return self._ordinal < self._last_recorded

    def numbered(self) -> int:
        self._ordinal += 1
        self._not_awaited.add(self._ordinal)
        return self._ordinal

    def log(self, line: str) -> None:
        if not self.is_replaying:
            self._context.events.emit(EventType.LOG, {"line": str(line)[: fixed.LOG_LINE_MAX_BYTES]})

    def progress(self, done: float, total: float, text: str) -> None:
        if not self.is_replaying:
            data = {"step": "", "purpose": "handler", "number": 0, "model": "", "output_tokens": 0, "seconds": 0.0}
            self._context.events.show(
                EventType.PROGRESS, {**data, "done": done, "total": total, "text": text or f"{done:g} of {total:g}"}
            )

    def begin(self, ordinal: int, request: EffectRequest) -> "asyncio.Future[Any]":
        self._not_awaited.discard(ordinal)
        if self._is_over:
            raise asyncio.CancelledError("the run does not go on here")
        task = asyncio.create_task(self._effect(ordinal, request), name=f"effect {ordinal}")
        self._tasks.add(task)
        self._running.add(ordinal)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the handler need not wait for it

    # --- an effect ---

    async def _effect(self, ordinal: int, request: EffectRequest) -> Any:
        try:
            result = await self._result(ordinal, *self._step(ordinal, request))
        except StepError:
            raise  # of the start of a run whose result is asked for
        except StepFailed as failed:
            raise StepError(failed.error, self._printed(failed.error.step)) from None
        except Suspended as suspended:
            self._blocked.decisions.append(suspended.decision)
        except EffectWaits as waits:
            self._blocked.add(waits)
        except EffectStopped as stopped:
            self._stop = graver(self._stop, StepFailed(stopped.error))
        except Exception as error:
            self._stop = graver(self._stop, error)
        else:
            return request.read(result)
        finally:
            self._running.discard(ordinal)
            self._changed.set()
        # The handler is cancelled when nothing else is left to do.
        await asyncio.get_running_loop().create_future()

    def _step(self, ordinal: int, request: EffectRequest) -> tuple[Step, EffectRequest]:
        """The effect's step, without secrets of the run in its names; but as the journal has it, where it was begun
        before the run was given what is one."""
        if self._context.redactor.knows_nothing:
            return step_of(ordinal, request), request
        if self._tools.get(str(request.kind)) is None and request.kind not in self._carriers:
            request = replace(request, kind=self._context.redactor.text(str(request.kind)))
        step, known = step_of(ordinal, request, self._context.redactor.text), self._by_ordinal.get(ordinal)
        if known is not None and known.step_id != step.id and known.step_id == (before := step_of(ordinal, request)).id:
            return before, request
        return step, request

    def _printed(self, step_id: str | None) -> str:
        """What a failed step's tool printed."""
        record = self.records.get(step_id or "")
        return str((record.result or {}).get("output", "")) if record is not None else ""

    async def _result(self, ordinal: int, step: Step, request: EffectRequest) -> dict[str, Any]:
        """The result of the effect's step, carried out where it has none. Raises StepFailed with its error."""
        if ordinal > fixed.HANDLER_EFFECTS_MAX:
            message = f"the handler asks for more than {fixed.HANDLER_EFFECTS_MAX:,} effects; let it start further runs"
            raise EffectStopped(RunError("too_many_effects", message))
        if self._kept_bytes > fixed.HANDLER_RUN_MAX_BYTES and ordinal not in self._by_ordinal:
            most = readable_size(fixed.HANDLER_RUN_MAX_BYTES)
            message = f"the effects of the run have given more than {most}; put what is large into files of the run"
            raise EffectStopped(RunError("too_much_kept", message))
        if self._stop is not None:
            raise EffectWaits  # for the end of the run
        digest = digest_of(request.kind, request.arguments if request.compared is None else request.compared)
        known = self._by_ordinal.get(ordinal)
        if known is not None:
            self._compare(known, step, digest, ordinal)
        if known is None or self.records[step.id].status not in _OVER:
            if request.kind == RESULT and request.function is not None:
                self._started[step.id] = await request.function()
            if self._context.shows_only:
                raise EffectStopped(RunError("not_recorded", f"the run before has no result of effect {ordinal}"))
            async with self._room:
                self._interruption.check()
                await self._carry_out_step(ordinal, step, request, digest, known)
            self._kept_bytes += kept_bytes(self.records[step.id].result)
        result = self.records[step.id].result or {}
        if self.records[step.id].status is StepStatus.FAILED:
            error = RunError(**result["error"])
            if request.kind == APPROVE and error.code == "rejected":
                return {"value": False}
            raise StepFailed(error)
        return result

    def _compare(self, known: StepRecord, step: Step, digest: str, ordinal: int) -> None:
        if (known.step_id, known.tool, known.request) == (step.id, step.tool, digest):
            return
        was, wanted = (f"{one.tool}, {one.title}" for one in (known, step))
        others = "" if (known.tool, known.step_id) != (step.tool, step.id) else " with other arguments"
        raise EffectStopped(
            self._diverged(
                f"effect {ordinal} was {known.step_id!r} ({was}), and the code asks for {step.id!r} ({wanted}){others}"
            ).error
        )

    def _diverged(self, difference: str) -> StepFailed:
        return StepFailed(
            RunError(
                "journal_diverged",
                f"the code of {self._code.title} does not do what it did before: {difference}. Put the "
                "code right, then retry the run: it goes on from there; or fork it from its beginning.",
            )
        )

    async def _carry_out_step(
        self, ordinal: int, step: Step, request: EffectRequest, digest: str, known: StepRecord | None
    ) -> None:
        self._written()
        if known is None:
            # Steps below others take places too; to look for the highest would take longer with each effect.
            self._position = max(self._position + 1, len(self.records))
            record = StepRecord(step.id, self._position, step.title, step.tool, StepStatus.PENDING, 0, None, None, None)
            self._runner.add(replace(record, ordinal=ordinal, request=digest))
        self._requests[step.id] = request
        try:
            carry_out = self._carriers.get(request.kind)
            if carry_out is None:
                await self._runner.run(step)
            else:
                await carry_out(OpenEffect.of(step, request, self._runner.journal))
        except StepFailed:
            return
        except BudgetExhausted as error:
            decision = await self._runner.ask_for_budget(step.id, error)
            if decision is not None:
                raise Suspended(decision) from error
            await self._refused(step, error)
        finally:
            self._requests.pop(step.id, None)
        self._write_soon()

    async def _refused(self, step: Step, error: BudgetExhausted) -> None:
        with suppress(StepFailed):
            await self._runner.journal.fail(step, RunError(error.code, error.message, step=step.id))

    async def _sleep(self, effect: OpenEffect) -> None:
        """Until the time that the journal has. Raises EffectWaits for a longer one."""
        step, journal = effect.step, effect.journal
        result = dict(effect.noted or {})
        if not result:
            try:
                result = given(due_after(effect.request.arguments["seconds"], "sleep").isoformat())
            except InvalidInput as error:
                await journal.fail(step, RunError(error.code, error.message, step=step.id))
            await journal.note(step, result)
        due = datetime.fromisoformat(result["value"])
        left = (due - datetime.now(UTC)).total_seconds()
        if left > AT_ONCE_SECONDS:
            raise EffectWaits(until=due)
        if left > 0:
            await self._interruption.pause(left)
        await journal.end(step, StepStatus.COMPLETED, result)

    async def _start(self, effect: OpenEffect) -> None:
        """Make the run in the transaction that ends the effect: so it is made once."""
        step, journal, children = effect.step, effect.journal, self._children
        await journal.count(step)
        asked = effect.request.arguments
        work = self._context.redactor.arguments({name: value for name, value in asked.items() if name in _GIVEN})
        try:
            child, events = children.new(step.id, {**asked, **work})
        except InvalidInput as error:
            await journal.fail(step, RunError(error.code, error.message, step=step.id))
        if (refused := await children.why_not(child)) is not None:
            await journal.fail(step, replace(refused, step=step.id))
        journal.write_later(lambda transaction: transaction.add_child_run(child, events))
        await journal.end(step, StepStatus.COMPLETED, given({"run_id": child.id}))
        await journal.flush()
        await children.push(child, events)

    async def _wait_for_run(self, effect: OpenEffect) -> None:
        """Raises EffectWaits while it is not over."""
        step, journal = effect.step, effect.journal
        run_id = self._started[step.id]
        over = await self._children.over(run_id)
        if over is None:
            raise EffectWaits(run_id=run_id)
        if over.error is not None:
            await journal.fail(step, replace(over.error, step=step.id))
        await journal.end(step, StepStatus.COMPLETED, given(over.value))

    async def _wait_for_event(self, effect: OpenEffect) -> None:
        """Raises EffectWaits while it has not come."""
        step, request, journal = effect.step, effect.request, effect.journal
        result = dict(effect.noted or {})
        if not result:
            try:
                self._refuse_secrets(request.arguments)
                result = given(await self._awaited.begin(request.arguments))
            except InvalidInput as error:
                await journal.fail(step, RunError(error.code, error.message, step=step.id))
            await journal.note(step, result)
        wait = await self._awaited.look(step.id, request.arguments, result["value"])
        if wait.status is WaitStatus.OPEN:
            raise EffectWaits(event=wait)
        await journal.end(step, StepStatus.COMPLETED, given(event_of(wait)))
        await self._awaited.settle(wait)

    def _refuse_secrets(self, asked: Mapping[str, Any]) -> None:
        """The type and the match are kept as they are, to be compared. Raises InvalidInput."""
        for name in ("type", "match"):
            if self._context.redactor.arguments({name: asked.get(name)}) != {name: asked.get(name)}:
                raise InvalidInput(f"{name}: it holds a secret of this run, which is kept nowhere; name something else")

    # --- what is written later ---

    def _may_defer(self) -> bool:
        return len(self._running) == 1 and not self._blocked

    def _write_soon(self) -> None:
        """The end of an effect is written with the begin of the next one, where that follows at once."""
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(WRITTEN_SECONDS, self._write)

    def _write(self) -> None:
        self._writing = None
        task = asyncio.create_task(self._flush(), name="write an effect's end")
        self._tasks.add(task)
        self._running.add(0)
        task.add_done_callback(self._forget)

    async def _flush(self) -> None:
        try:
            await self._runner.journal.flush()
        except Exception as error:
            self._stop = graver(self._stop, error)
        finally:
            self._running.discard(0)
            self._changed.set()

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _warn_blocked(self, place: str, seconds: float) -> None:
        self._warn(in_words_blocked(place, seconds))

    def _warn(self, line: str) -> None:
        self._context.events.emit(EventType.LOG, {"line": line, "level": "warning"})


def _failed_effect(error: BaseException) -> StepError | None:
    """The failed effect that has led to the error. `raise error.__cause__ from error` makes a circle of causes."""
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, StepError):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None
