"""The models as one run uses them: every call is recorded, paid for, told, and made once.

The order of a call:

    its record is looked up   a completed one answers: a run that goes on after a crash asks nothing twice
    tokens, then the turn     it waits; the waits end when the worker leaves, as nothing is in hand
    one transaction           the call as started, and what it may cost at most, reserved
    the call
    one transaction           the answer, what it did cost, and the event that tells of it

What breaks in between leaves a call `started` and something reserved; whoever takes the run over counts that as spent,
because the provider may have charged for it, and asks again.

A replay takes every answer from the record of the run that it replays. It reserves nothing and asks no server; when it
comes to ask something else than that run did, it says where they part, and fails.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import ClassVar, TypeVar
from uuid import uuid4

import structlog

from backplane.domain.budgets import MICRO, Amounts, Resource
from backplane.domain.events import EventType
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals, RecordedCall
from backplane.domain.runs import Run, RunError
from backplane.errors import ModelError, Unavailable
from backplane.process.retrying import until_available
from backplane.process.tasks import end
from backplane.store import ModelCalls, RunTransaction
from worker.llm.answer import estimated_input_tokens, estimated_tokens, size_of
from worker.llm.base import (
    AskedFor,
    ModelContextTooLong,
    ModelOutputInvalid,
    ModelRefused,
    ModelRequest,
    ModelResponse,
    Models,
    ModelUnavailable,
    Spent,
    TextSink,
    Usage,
)
from worker.llm.gateway import Candidate, ModelGateway
from worker.llm.progress import Progress
from worker.llm.records import (
    answer_of,
    digest_of,
    first_difference,
    record_of,
    record_of_answer,
    redacted,
    redacted_answer,
)
from worker.llm.waiting import WaitNotice
from worker.run.budget import Budget
from worker.run.events import RunEvents, Told, Write
from worker.run.interruption import Interrupted, Interruption

Result = TypeVar("Result")

FOR_EVER = 1e9
"""Seconds."""

log = structlog.get_logger()


class ReplayDiverged(ModelError):
    """A replayed run asks something else than the run did whose answers it takes."""

    code: ClassVar[str] = "replay_diverged"


class RecordedFailure(ModelError):
    """What a replayed run's call failed of."""

    code: ClassVar[str] = "model_error"


@dataclass(slots=True)
class _KnownCall:
    """What is known of a call. `seconds`: of its last try. `is_lost`: nobody knows how its last try ended."""

    status: CallStatus
    digest: str
    totals: CallTotals
    seconds: float
    is_lost: bool = False


@dataclass(slots=True)
class _SessionCall:
    """A call in hand. `totals`: of the tries before the one that is being made."""

    key: CallKey
    request: ModelRequest
    digest: str
    on_text: TextSink
    totals: CallTotals


@dataclass(slots=True)
class _Try:
    """One try of a call, and what came of it. `begun`: it is, or may be, written down as started."""

    candidate: Candidate
    id: str = field(default_factory=lambda: str(uuid4()))
    begun: bool = False
    seconds: float = 0.0
    usage: Usage | None = None
    micro_usd: int | None = 0
    response: ModelResponse | None = None
    error: ModelError | None = None


class RunModels(Models):
    """Of one held run. `load` it where `spent` is asked before the first call."""

    def __init__(
        self,
        gateway: ModelGateway,
        calls: ModelCalls,
        run: Run,
        events: RunEvents,
        budget: Budget,
        redact: Callable[[str], str],
        interruption: Interruption,
    ) -> None:
        self._gateway = gateway
        self._calls = calls
        self._run = run
        self._events = events
        self._budget = budget
        self._redact = redact
        self._interruption = interruption
        self._progress = Progress(
            lambda shown: events.show(EventType.PROGRESS, shown),
            events.show_nothing,
            lambda text: events.redactor.text(text, is_cut=True),
        )
        self._knows_rates = False
        """Its watchers have read which settings its calls wait for."""
        self._known: dict[CallKey, _KnownCall] = {}
        self._loading = asyncio.Lock()
        self._loaded = False
        origin = run.origin or {}
        self._replays: str | None = origin.get("run_id") if origin.get("kind") == "replay" else None

    async def load(self) -> None:
        """What the run has asked before. Waits while the database is away."""
        async with self._loading:
            if self._loaded:
                return
            for call in await self._read(lambda: self._calls.of_run(self._run.id)):
                seconds = (call.finished_at - call.started_at).total_seconds() if call.finished_at else 0.0
                is_lost = call.finished_at is None
                self._known[call.key] = _KnownCall(call.status, call.request_digest, call.totals, seconds, is_lost)
            self._loaded = True

    async def ask(
        self, request: ModelRequest, asked_for: AskedFor, *, model: str | None = None, on_text: TextSink | None = None
    ) -> ModelResponse:
        request = redacted(request, self._redact)
        key = CallKey(asked_for.step_id, asked_for.purpose, asked_for.number)
        digest = digest_of(request)
        await self.load()
        known = self._known.get(key)
        if known and known.status is CallStatus.COMPLETED and known.digest == digest:
            recorded = await self._read(lambda: self._calls.find(self._run.id, key))
            if recorded and recorded.response is not None:
                return answer_of(recorded.response)
        totals = known.totals if known else CallTotals()
        call = _SessionCall(key, request, digest, on_text or _unheard, totals)
        most = self._gateway.limits.input_bytes
        if (size := size_of(request)) > most:
            raise ModelContextTooLong(f"the prompt has {size} bytes, and MODEL_MAX_INPUT_BYTES allows {most}")
        if self._replays is not None:
            return await self._replayed(call, self._replays)
        candidates = self._gateway.candidates(model or self._run.model)
        if known and known.is_lost:
            call.totals += _worst(call.request, candidates[0])
        return await self._asked(call, candidates)

    def spent(self, step_id: str | None = None) -> Spent:
        calls = [known for key, known in self._known.items() if step_id is None or _is_of_step(key, step_id)]
        totals = sum((known.totals for known in calls), CallTotals())
        seconds = sum(known.seconds for known in calls)
        return Spent(len(calls), totals.input_tokens, totals.output_tokens, totals.micro_usd, seconds)

    def estimate_micro_usd(self, input_tokens: int, output_tokens: int, model: str | None = None) -> int | None:
        try:
            price = self._gateway.candidates(model or self._run.model)[0].price
        except ModelRefused:
            return None
        return price.micro_usd(input_tokens, output_tokens) if price else None

    async def _asked(self, call: _SessionCall, candidates: list[Candidate]) -> ModelResponse:
        failures: list[tuple[Candidate, ModelError, int]] = []
        for candidate in candidates:
            outcome, tries = await self._tried(call, candidate, is_last=candidate is candidates[-1])
            if isinstance(outcome, ModelResponse):
                return outcome
            failures.append((candidate, outcome, tries))
        raise _failure(failures)

    async def _tried(
        self, call: _SessionCall, candidate: Candidate, *, is_last: bool
    ) -> tuple[ModelResponse | ModelError, int]:
        """What one model gives, an answer or the last error, and after how many tries."""
        self._interruption.check()
        for tries in count(1):
            one = await self._try(call, candidate)
            if one.error is None:
                assert one.response is not None
                return one.response, tries
            pause = self._gateway.pause_before_next(candidate, one.error, tries)
            is_over = is_last and pause is None
            await self._end(call, one, CallStatus.FAILED if is_over else CallStatus.STARTED, pause)
            if pause is None:
                return one.error, tries
            await self._interruption.pause(pause)
        raise AssertionError("the count never ends")

    async def _try(self, call: _SessionCall, candidate: Candidate) -> _Try:
        """A try that has an answer is recorded; one that failed is still to be. Raises BudgetExhausted, Interrupted."""
        one = _Try(candidate)
        if candidate.price is None and await self._budget.left(Resource.MICRO_USD) is not None:
            one.error = ModelRefused(
                f"{candidate.name} has no price, so it cannot be held within a budget of dollars; set MODEL_PRICES"
            )
            return one
        try:
            async with AsyncExitStack() as stack:
                took = await self._turn(stack, call, one)
                try:
                    await self._begin(call, one)
                    await self._make(call, one)
                finally:
                    took(one.usage.output_tokens if one.usage else 0)
            if one.error is None:
                await self._end(call, one, CallStatus.COMPLETED)
        except asyncio.CancelledError:
            if one.begun:
                # With whatever is written next of the run: there is no time left to wait for the database.
                status = CallStatus.STARTED if one.response is None else CallStatus.COMPLETED
                self._events.defer(self._ending(call, one, status))
                self._events.emit(*self._event(call, one, "cancelled" if one.response is None else status.value))
            raise
        return one

    async def _turn(self, stack: AsyncExitStack, call: _SessionCall, one: _Try) -> Callable[[int], None]:
        candidate, server = one.candidate, one.candidate.name.server
        estimate = self._gateway.usual_output(candidate, call.request.max_output_tokens)
        rates = self._gateway.limits.rates
        buckets = rates.buckets(self._run.user_id, self._run.agent, candidate.spec)

        def reason() -> str:
            if self._knows_rates:
                return "this agent or its user has had as many as it may"
            self._knows_rates = True
            return rates.reason(candidate.spec)

        notice = WaitNotice(lambda line: self._events.emit(*self._notice(call, line, "info")))
        with notice:
            async with self._until_interrupted():
                took = await stack.enter_async_context(
                    self._gateway.tokens(
                        candidate, buckets, self._run.id, estimate, lambda seconds: notice.tokens(seconds, reason)
                    )
                )
                turn = self._gateway.turn(
                    candidate, self._run.user_id, self._run.id, one.id, lambda place: notice.turn(server, place)
                )
                await stack.enter_async_context(turn)
        return took

    async def _begin(self, call: _SessionCall, one: _Try) -> None:
        name = one.candidate.name
        record = record_of(call.request, self._gateway.limits.record_bytes)
        beginning = BeginningCall(call.key, one.id, name.server, name.model, record, call.digest)
        worst = _worst(call.request, one.candidate)
        amounts = Amounts(
            tokens=worst.input_tokens + worst.output_tokens,
            micro_usd=worst.micro_usd or 0,
            # A step's seconds are its supervisor's to count, and its calls' are among them.
            seconds=0 if call.key.step_id else 1,
        )
        reserve = self._budget.reserve(one.id, call.key.step_id, amounts)
        one.begun = True
        try:
            await self._events.record(lambda held: held.begin_model_call(beginning), reserve)
        except Exception:
            one.begun = False
            raise

    async def _make(self, call: _SessionCall, one: _Try) -> None:
        began = time.monotonic()
        about = {**_place(call), "model": str(one.candidate.name)}
        progress = self._progress.of_call(about, with_text=call.on_text is not _unheard)

        def heard(piece: str) -> None:
            progress.text(piece)
            call.on_text(piece)

        try:
            with progress:
                response = await self._gateway.complete(one.candidate, call.request, heard, progress.has)
        except ModelError as error:
            one.error, one.seconds = error, time.monotonic() - began
            if isinstance(error, ModelUnavailable | ModelOutputInvalid):
                one.usage = error.usage
        except asyncio.CancelledError:
            one.seconds = time.monotonic() - began
            one.usage = Usage(estimated_input_tokens(call.request), estimated_tokens(progress.bytes), is_estimate=True)
            raise
        else:
            one.seconds, one.usage = time.monotonic() - began, response.usage
            one.response = response
        finally:
            if one.usage is not None:
                one.micro_usd = self._gateway.spent(one.candidate, one.usage)
        if one.response is not None:
            name = str(one.candidate.name)
            answer = redacted_answer(one.response, self._redact)
            one.response = replace(answer, model=name, micro_usd=one.micro_usd, seconds=one.seconds)

    async def _end(self, call: _SessionCall, one: _Try, status: CallStatus, pause: float | None = None) -> None:
        """Write down what came of a try, and tell it. `pause`: until the next one."""
        told = [self._event(call, one, "retrying" if status is CallStatus.STARTED else status.value)]
        if pause is not None and one.error is not None:
            told.append(self._notice(call, f"{one.error.message}; trying again in {pause:.1f} s", "warning"))
        if not one.begun and call.key not in self._known:
            await self._events.record(tell=told)
            return
        ending = self._ending(call, one, status)
        one.begun = False
        try:
            await self._events.record(ending, tell=told)
        except asyncio.CancelledError:
            # It may be committed or not: written again, it changes nothing.
            self._events.defer(ending)
            raise
        call.totals = self._known[call.key].totals

    def _ending(self, call: _SessionCall, one: _Try, status: CallStatus) -> Write:
        usage = one.usage or Usage(0, 0)
        micro_usd = one.micro_usd if one.usage else 0
        totals = call.totals + CallTotals(usage.input_tokens, usage.output_tokens, micro_usd)
        self._known[call.key] = _KnownCall(status, call.digest, totals, one.seconds)
        spent = Amounts(
            tokens=usage.input_tokens + usage.output_tokens,
            micro_usd=micro_usd or 0,
            seconds=0 if call.key.step_id else math.ceil(one.seconds),
        )
        settle = self._budget.settle(one.id, spent) if one.usage else self._budget.release(one.id)
        response = record_of_answer(one.response) if one.response else None
        error = self._run_error(one.error, call) if one.error else None

        def write(held: RunTransaction) -> None:
            held.end_model_call(call.key, status, totals, response=response, error=error)
            settle(held)

        return write

    def _event(self, call: _SessionCall, one: _Try, status: str) -> Told:
        told: dict[str, object] = {
            **_place(call),
            "model": str(one.candidate.name),
            "status": status,
            "duration_ms": round(one.seconds * 1000),
        }
        if one.usage is not None:
            told |= {"input_tokens": one.usage.input_tokens, "output_tokens": one.usage.output_tokens}
            # None: it has a cost, and nobody knows which.
            told["usd"] = None if one.micro_usd is None else one.micro_usd / MICRO
        if one.error is not None:
            told["error"] = {"code": one.error.code, "message": one.error.message}
        return EventType.MODEL, told

    async def _replayed(self, call: _SessionCall, run_id: str) -> ModelResponse:
        recorded = await self._read(lambda: self._calls.find(run_id, call.key))
        request = record_of(call.request, self._gateway.limits.record_bytes)
        response = _answer_for_replay(call, recorded, request, run_id)
        name = f"{recorded.server}/{recorded.model}" if recorded else ""
        usage = response.usage
        totals = CallTotals(usage.input_tokens, usage.output_tokens, 0)
        server, _, model = name.partition("/")
        beginning = BeginningCall(call.key, str(uuid4()), server, model, request, call.digest)

        def write(held: RunTransaction) -> None:
            held.begin_model_call(beginning)
            held.end_model_call(call.key, CallStatus.COMPLETED, totals, response=record_of_answer(response))

        told = {"model": name, "status": "completed", "replayed": True, "duration_ms": 0, "usd": 0.0}
        counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        await self._events.record(write, tell=[(EventType.MODEL, {**_place(call), **told, **counts})])
        self._known[call.key] = _KnownCall(CallStatus.COMPLETED, call.digest, totals, 0.0)
        call.on_text(response.text)
        return response

    @asynccontextmanager
    async def _until_interrupted(self) -> AsyncIterator[None]:
        """Around a wait: it ends when the run is interrupted, and when the worker leaves. Raises Interrupted."""

        async def watch(scope: asyncio.Timeout) -> None:
            try:
                await self._interruption.pause(FOR_EVER)
            except Interrupted:
                scope.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(None) as scope:
                watching = asyncio.create_task(watch(scope), name="interruption of a wait")
                try:
                    yield
                finally:
                    await end(watching)
        except TimeoutError:
            self._interruption.check()
            raise

    async def _read(self, call: Callable[[], Awaitable[Result]]) -> Result:
        def tell(error: Unavailable, pause: float) -> None:
            log.warning("the database is away", run=self._run.id, error=error.message, pause=round(pause, 1))

        return await until_available(call, tell)

    def _run_error(self, error: ModelError, call: _SessionCall) -> RunError:
        return RunError(error.code, error.message, error.retryable, _step_of(call.key) or None)

    def _notice(self, call: _SessionCall, line: str, level: str) -> Told:
        step = {"step": _step_of(call.key)} if call.key.step_id else {}
        return EventType.LOG, {"line": line, "level": level, **step}


def _unheard(_: str) -> None:
    pass


def _place(call: _SessionCall) -> dict[str, object]:
    return {"step": _step_of(call.key), "purpose": call.key.purpose, "number": call.key.number}


def _step_of(key: CallKey) -> str:
    """As watchers know it: without the round of an agent's step."""
    return key.step_id.partition("/")[0]


def _is_of_step(key: CallKey, step_id: str) -> bool:
    return key.step_id == step_id or key.step_id.startswith(f"{step_id}/")


def _worst(request: ModelRequest, candidate: Candidate) -> CallTotals:
    """The most that a call is expected to take."""
    tokens = estimated_input_tokens(request)
    price = candidate.price
    micro_usd = price.micro_usd(tokens, request.max_output_tokens) if price else None
    return CallTotals(tokens, request.max_output_tokens, micro_usd)


def _failure(failures: list[tuple[Candidate, ModelError, int]]) -> ModelError:
    """What the caller is told when no model has answered: the last error, unless the prompt was too long for one of
    them, as that is something that the caller can mend. With what was tried."""
    errors = [error for _, error, _ in failures]
    told = next((error for error in errors if isinstance(error, ModelContextTooLong)), errors[-1])
    if len(failures) > 1 or failures[0][2] > 1:
        tried = ", ".join(f"{candidate.name} {tries}×" for candidate, _, tries in failures)
        told.message = f"{told.message} (tried: {tried})"
        told.args = (told.message,)
    return told


def _answer_for_replay(
    call: _SessionCall, recorded: RecordedCall | None, request: dict[str, object], run_id: str
) -> ModelResponse:
    """Raises ReplayDiverged, and what the recorded call failed of."""
    where = f"{call.key.purpose} {call.key.number}" + (f" of step {call.key.step_id}" if call.key.step_id else "")
    if recorded is None:
        raise ReplayDiverged(f"replay diverged: it asks a model for {where}, which run {run_id} never did, or not kept")
    if recorded.request_digest != call.digest:
        difference = first_difference(recorded.request or {}, request)
        raise ReplayDiverged(f"replay diverged from run {run_id} at {where}: {difference}")
    if recorded.status is CallStatus.FAILED and recorded.error is not None:
        # A caller that went on after these does so again.
        goes_on = {kind.code: kind for kind in (ModelContextTooLong, ModelOutputInvalid)}
        raise goes_on.get(recorded.error.code, RecordedFailure)(f"as in run {run_id}: {recorded.error.message}")
    if recorded.response is None:
        raise ReplayDiverged(f"replay diverged: run {run_id} has no answer to {where}")
    return answer_of(recorded.response)
