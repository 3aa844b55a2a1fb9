"""A model call of a run as its session knows it: which one it is, and what it has taken so far."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from backplane.domain.events import EventType
from backplane.domain.model_calls import CallKey, CallStatus, CallTotals
from backplane.process.retrying import until_available
from backplane.store import ModelCalls
from worker.llm.base import ModelRequest, ModelResponse, Spent, TextSink
from worker.llm.records import answer_of
from worker.run.events import NewEvent


@dataclass(slots=True)
class RunningCall:
    """A call that is being made. `totals`: of the tries before the one that is being made."""

    key: CallKey
    request: ModelRequest
    digest: str
    on_text: TextSink
    totals: CallTotals

    @property
    def place(self) -> dict[str, object]:
        """The fields of each of its events that say where it belongs."""
        return {"step": self.key.step, "purpose": self.key.purpose, "number": self.key.number}

    def notice(self, line: str, level: str) -> NewEvent:
        """An event for the run's log."""
        step = {"step": self.key.step} if self.key.step else {}
        return EventType.LOG, {"line": line, "level": level, **step}


class CallSource(Protocol):
    """Where the answers of a run's calls come from: its model servers, or the record of another run."""

    async def answer(self, call: RunningCall, model: str | None) -> ModelResponse:
        """The answer to a call that has none yet. `model`: the one to ask, in place of the run's own. Raises what
        `Models.ask` does."""


@dataclass(slots=True)
class KnownCall:
    """What is known of a call. `seconds`: of its last try. `is_lost`: nobody knows how its last try ended."""

    status: CallStatus
    digest: str
    totals: CallTotals
    seconds: float
    is_lost: bool = False


class CallBook:
    """All calls of one run. `load` it where `spent` is asked before the first call."""

    def __init__(self, calls: ModelCalls, run_id: str) -> None:
        self.known: dict[CallKey, KnownCall] = {}
        self._calls = calls
        self._run_id = run_id
        self._loading = asyncio.Lock()
        self._loaded = False

    async def load(self) -> None:
        """Read the calls that the run has made before. Waits while the database is away."""
        async with self._loading:
            if self._loaded:
                return
            for call in await until_available(lambda: self._calls.of_run(self._run_id)):
                seconds = (call.finished_at - call.started_at).total_seconds() if call.finished_at else 0.0
                is_lost = call.finished_at is None
                self.known[call.key] = KnownCall(call.status, call.request_digest, call.totals, seconds, is_lost)
            self._loaded = True

    async def recorded(self, key: CallKey, digest: str) -> ModelResponse | None:
        """The answer that this call had before, if the request was the same. Waits while the database is away."""
        known = self.known.get(key)
        if known is None or known.status is not CallStatus.COMPLETED or known.digest != digest:
            return None
        recorded = await until_available(lambda: self._calls.find(self._run_id, key))
        return answer_of(recorded.response) if recorded and recorded.response is not None else None

    def totals(self, key: CallKey) -> CallTotals:
        known = self.known.get(key)
        return known.totals if known else CallTotals()

    def spent(self, step_id: str | None) -> Spent:
        """What the calls of one step have spent; None: those of all steps."""
        calls = [known for key, known in self.known.items() if step_id is None or key.step == step_id]
        totals = sum((known.totals for known in calls), CallTotals())
        seconds = sum(known.seconds for known in calls)
        return Spent(len(calls), totals.input_tokens, totals.output_tokens, totals.micro_usd, seconds)


def not_watched(_: str) -> None:
    """A TextSink that nobody reads."""
