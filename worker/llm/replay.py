"""Model calls of a replay: every answer is taken from the record of the run that is replayed.

Nothing is reserved and no server is asked. When the run asks something else than its source did, the call fails with
the first difference.
"""

from typing import ClassVar
from uuid import uuid4

from backplane.domain.events import EventType
from backplane.domain.model_calls import BeginningCall, CallStatus, CallTotals, RecordedCall
from backplane.errors import ModelError
from backplane.process.retrying import until_available
from backplane.store import ModelCalls, RunTransaction
from worker.llm.base import ModelContextTooLong, ModelOutputInvalid, ModelResponse
from worker.llm.calls import CallBook, KnownCall, RunningCall
from worker.llm.records import answer_of, first_difference, record_of, record_of_answer
from worker.run.events import RunEvents


class ReplayDiverged(ModelError):
    """A replayed run asks something else than the run did whose answers it takes."""

    code: ClassVar[str] = "replay_diverged"


class RecordedFailure(ModelError):
    """The error of the recorded call."""

    code: ClassVar[str] = "model_error"


class ReplayedCalls:
    """A `worker.llm.calls.CallSource`. `source`: the id of the run whose answers are taken. `record_bytes`: how much of
    a prompt is kept."""

    def __init__(self, source: str, calls: ModelCalls, book: CallBook, events: RunEvents, *, record_bytes: int) -> None:
        self._source = source
        self._calls = calls
        self._book = book
        self._events = events
        self._record_bytes = record_bytes

    async def answer(self, call: RunningCall, model: str | None) -> ModelResponse:
        """Raises ReplayDiverged, and what the recorded call failed of."""
        recorded = await until_available(lambda: self._calls.find(self._source, call.key))
        request = record_of(call.request, self._record_bytes)
        response = answer_for_replay(call, recorded, request, self._source)
        name = f"{recorded.server}/{recorded.model}" if recorded else ""
        usage = response.usage
        totals = CallTotals(usage.input_tokens, usage.output_tokens, 0)
        server, _, asked = name.partition("/")
        beginning = BeginningCall(call.key, str(uuid4()), server, asked, request, call.digest)

        def write(transaction: RunTransaction) -> None:
            transaction.begin_model_call(beginning)
            record = record_of_answer(response)
            transaction.end_model_call(call.key, CallStatus.COMPLETED, totals, response=record, was_made=False)

        shown = {"model": name, "status": "completed", "replayed": True, "duration_ms": 0, "usd": 0.0}
        counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        await self._events.record(write, publish=[(EventType.MODEL, {**call.place, **shown, **counts})])
        self._book.known[call.key] = KnownCall(CallStatus.COMPLETED, call.digest, totals, 0.0)
        call.on_text(response.text)
        return response


def answer_for_replay(
    call: RunningCall, recorded: RecordedCall | None, request: dict[str, object], run_id: str
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
