"""The models as one run uses them: every call is recorded, and an answer that the run had before is given again.

So a run that goes on after a crash asks nothing twice. A call without an answer goes to a source: model servers
(`worker.llm.live`), or for a replay the record of the run that it replays (`worker.llm.replay`).
"""

from collections.abc import Callable

from backplane.domain.model_calls import CallKey
from backplane.domain.runs import Run
from backplane.store import ModelCalls
from worker.llm.answer import size_of
from worker.llm.base import (
    ModelContextTooLong,
    ModelRefused,
    ModelRequest,
    ModelResponse,
    Models,
    Spent,
    TextSink,
)
from worker.llm.calls import CallBook, CallSource, RunningCall, not_watched
from worker.llm.gateway import ModelGateway
from worker.llm.live import LiveCalls
from worker.llm.records import digest_of, redacted
from worker.llm.replay import ReplayedCalls
from worker.run.budget import Budget
from worker.run.events import RunEvents
from worker.run.interruption import Interruption


class RunModels(Models):
    """The models of one running run. `load` must be called where `spent` is used before the first call."""

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
        self._run = run
        self._redact = redact
        self._book = CallBook(calls, run.id)
        origin = run.origin or {}
        source: CallSource
        if origin.get("kind") == "replay" and origin.get("run_id") is not None:
            record_bytes = gateway.limits.record_bytes
            source = ReplayedCalls(origin["run_id"], calls, self._book, events, record_bytes=record_bytes)
        else:
            source = LiveCalls(gateway, run, self._book, events, budget, redact, interruption)
        self._source = source

    async def load(self) -> None:
        """Read the calls that the run has made before. Waits while the database is away."""
        await self._book.load()

    async def ask(
        self, request: ModelRequest, key: CallKey, *, model: str | None = None, on_text: TextSink | None = None
    ) -> ModelResponse:
        request = redacted(request, self._redact)
        digest = digest_of(request)
        await self._book.load()
        recorded = await self._book.recorded(key, digest)
        if recorded is not None:
            return recorded
        most = self._gateway.limits.input_bytes
        if (size := size_of(request)) > most:
            raise ModelContextTooLong(f"the prompt has {size} bytes, and MODEL_MAX_INPUT_BYTES allows {most}")
        call = RunningCall(key, request, digest, on_text or not_watched, self._book.totals(key))
        return await self._source.answer(call, model)

    def spent(self, step_id: str | None = None) -> Spent:
        return self._book.spent(step_id)

    def estimate_micro_usd(self, input_tokens: int, output_tokens: int, model: str | None = None) -> int | None:
        try:
            price = self._gateway.models.candidates(model or self._run.model)[0].price
        except ModelRefused:
            return None
        return price.micro_usd(input_tokens, output_tokens) if price else None
