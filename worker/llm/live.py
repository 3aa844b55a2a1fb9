"""Model calls that are made: at a server, within its turn, the run's budgets and the retries.

    tokens, then the turn     the call waits; the waits end when the worker drains, as nothing is running
    one transaction           the call as started, and what it may cost at most, reserved
    the call
    one transaction           the answer, what it did cost, and the event that says so

After a crash in between, the call is `started` and its cost reserved. The worker that takes the run over counts the
cost as spent, because the provider may have charged for it, and asks again.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from uuid import uuid4

from backplane.domain.budgets import MICRO, Amounts, Resource
from backplane.domain.events import EventType
from backplane.domain.model_calls import BeginningCall, CallStatus, CallTotals
from backplane.domain.runs import Run, RunError
from backplane.errors import ModelError
from backplane.process.tasks import end
from backplane.store import RunTransaction
from worker.llm.answer import estimated_input_tokens, estimated_tokens
from worker.llm.base import (
    ModelContextTooLong,
    ModelOutputInvalid,
    ModelRefused,
    ModelRequest,
    ModelResponse,
    ModelUnavailable,
    Usage,
)
from worker.llm.calls import CallBook, KnownCall, RunningCall, not_watched
from worker.llm.choice import Candidate
from worker.llm.gateway import ModelGateway
from worker.llm.progress import Progress
from worker.llm.records import record_of, record_of_answer, redacted_answer
from worker.llm.waiting import WaitNotice
from worker.run.budget import Budget
from worker.run.events import NewEvent, RunEvents, Write
from worker.run.interruption import Interrupted, Interruption

FOR_EVER = 1e9
"""Seconds."""


@dataclass(slots=True)
class _ModelTry:
    """One try of a call, and what came of it. `begun`: it is, or may be, written down as started."""

    candidate: Candidate
    id: str = field(default_factory=lambda: str(uuid4()))
    begun: bool = False
    seconds: float = 0.0
    usage: Usage | None = None
    micro_usd: int | None = 0
    response: ModelResponse | None = None
    error: ModelError | None = None


class LiveCalls:
    """A `worker.llm.calls.CallSource`."""

    def __init__(
        self,
        gateway: ModelGateway,
        run: Run,
        book: CallBook,
        events: RunEvents,
        budget: Budget,
        redact: Callable[[str], str],
        interruption: Interruption,
    ) -> None:
        self._gateway = gateway
        self._run = run
        self._book = book
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
        """Whether the watchers have read which settings the run's calls wait for."""

    async def answer(self, call: RunningCall, model: str | None) -> ModelResponse:
        candidates = self._gateway.models.candidates(model or self._run.model)
        known = self._book.known.get(call.key)
        if known and known.is_lost:
            call.totals += _worst(call.request, candidates[0])
        failures: list[tuple[Candidate, ModelError, int]] = []
        for candidate in candidates:
            outcome, tries = await self._tried(call, candidate, is_last=candidate is candidates[-1])
            if isinstance(outcome, ModelResponse):
                return outcome
            failures.append((candidate, outcome, tries))
        raise _failure(failures)

    async def _tried(
        self, call: RunningCall, candidate: Candidate, *, is_last: bool
    ) -> tuple[ModelResponse | ModelError, int]:
        """What one model gives, an answer or the last error, and the number of tries."""
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

    async def _try(self, call: RunningCall, candidate: Candidate) -> _ModelTry:
        """Make one try. With an answer it is recorded here; a failed one is recorded by the caller. Raises
        BudgetExhausted, Interrupted."""
        one = _ModelTry(candidate)
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
                # It goes with the run's next record: there is no time left to wait for the database.
                status = CallStatus.STARTED if one.response is None else CallStatus.COMPLETED
                self._events.defer(self._ending(call, one, status))
                self._events.emit(*_event(call, one, "cancelled" if one.response is None else status.value))
            raise
        return one

    async def _turn(self, stack: AsyncExitStack, call: RunningCall, one: _ModelTry) -> Callable[[int], None]:
        candidate, server = one.candidate, one.candidate.name.server
        estimate = self._gateway.usual_output(candidate, call.request.max_output_tokens)
        rates = self._gateway.limits.rates
        buckets = rates.buckets(self._run.user_id, self._run.agent, candidate.spec)

        def reason() -> str:
            if self._knows_rates:
                return "this agent or its user has had as many as it may"
            self._knows_rates = True
            return rates.reason(candidate.spec)

        notice = WaitNotice(lambda line: self._events.emit(*call.notice(line, "info")))
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

    async def _begin(self, call: RunningCall, one: _ModelTry) -> None:
        name = one.candidate.name
        record = record_of(call.request, self._gateway.limits.record_bytes)
        beginning = BeginningCall(call.key, one.id, name.server, name.model, record, call.digest)
        worst = _worst(call.request, one.candidate)
        amounts = Amounts(
            tokens=worst.input_tokens + worst.output_tokens,
            micro_usd=worst.micro_usd or 0,
            # The supervisor counts a step's seconds, and those of its calls are among them.
            seconds=0 if call.key.step else 1,
        )
        reserve = self._budget.reserve(one.id, call.key.step_id, amounts)
        one.begun = True
        try:
            await self._events.record(lambda transaction: transaction.begin_model_call(beginning), reserve)
        except Exception:
            one.begun = False
            raise

    async def _make(self, call: RunningCall, one: _ModelTry) -> None:
        began = time.monotonic()
        about = {**call.place, "model": str(one.candidate.name)}
        progress = self._progress.of_call(about, with_text=call.on_text is not not_watched)

        def received(piece: str) -> None:
            progress.text(piece)
            call.on_text(piece)

        try:
            with progress:
                response = await self._gateway.complete(one.candidate, call.request, received, progress.has)
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

    async def _end(self, call: RunningCall, one: _ModelTry, status: CallStatus, pause: float | None = None) -> None:
        """Write down how a try ended, and publish it. `pause`: seconds until the next try."""
        events = [_event(call, one, "retrying" if status is CallStatus.STARTED else status.value)]
        if pause is not None and one.error is not None:
            events.append(call.notice(f"{one.error.message}; trying again in {pause:.1f} s", "warning"))
        if not one.begun and call.key not in self._book.known:
            await self._events.record(publish=events)
            return
        ending = self._ending(call, one, status)
        one.begun = False
        try:
            await self._events.record(ending, publish=events)
        except asyncio.CancelledError:
            # It may be committed or not: written again, it changes nothing.
            self._events.defer(ending)
            raise
        call.totals = self._book.known[call.key].totals

    def _ending(self, call: RunningCall, one: _ModelTry, status: CallStatus) -> Write:
        usage = one.usage or Usage(0, 0)
        micro_usd = one.micro_usd if one.usage else 0
        totals = call.totals + CallTotals(usage.input_tokens, usage.output_tokens, micro_usd)
        self._book.known[call.key] = KnownCall(status, call.digest, totals, one.seconds)
        spent = Amounts(
            tokens=usage.input_tokens + usage.output_tokens,
            micro_usd=micro_usd or 0,
            seconds=0 if call.key.step else math.ceil(one.seconds),
        )
        settle = self._budget.settle(one.id, spent) if one.usage else self._budget.release(one.id)
        response = record_of_answer(one.response) if one.response else None
        error = _run_error(one.error, call) if one.error else None

        def write(transaction: RunTransaction) -> None:
            transaction.end_model_call(call.key, status, totals, response=response, error=error)
            settle(transaction)

        return write

    @asynccontextmanager
    async def _until_interrupted(self) -> AsyncIterator[None]:
        """The wait in the block ends when the run is interrupted, and when the worker drains. Raises Interrupted."""

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


def _event(call: RunningCall, one: _ModelTry, status: str) -> NewEvent:
    data: dict[str, object] = {
        **call.place,
        "model": str(one.candidate.name),
        "status": status,
        "duration_ms": round(one.seconds * 1000),
    }
    if one.usage is not None:
        data |= {"input_tokens": one.usage.input_tokens, "output_tokens": one.usage.output_tokens}
        # None: the call has a cost that nobody knows.
        data["usd"] = None if one.micro_usd is None else one.micro_usd / MICRO
    if one.error is not None:
        data["error"] = {"code": one.error.code, "message": one.error.message}
    return EventType.MODEL, data


def _run_error(error: ModelError, call: RunningCall) -> RunError:
    return RunError(error.code, error.message, error.retryable, call.key.step or None)


def _worst(request: ModelRequest, candidate: Candidate) -> CallTotals:
    """The most that a call is expected to cost."""
    tokens = estimated_input_tokens(request)
    price = candidate.price
    micro_usd = price.micro_usd(tokens, request.max_output_tokens) if price else None
    return CallTotals(tokens, request.max_output_tokens, micro_usd)


def _failure(failures: list[tuple[Candidate, ModelError, int]]) -> ModelError:
    """The error to raise when no model has answered, with the models that were tried: the last error, or that the
    prompt was too long for one of them, which the caller can mend."""
    errors = [error for _, error, _ in failures]
    failure = next((error for error in errors if isinstance(error, ModelContextTooLong)), errors[-1])
    if len(failures) > 1 or failures[0][2] > 1:
        tried = ", ".join(f"{candidate.name} {tries}×" for candidate, _, tries in failures)
        failure.message = f"{failure.message} (tried: {tried})"
        failure.args = (failure.message,)
    return failure
