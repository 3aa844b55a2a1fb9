"""How one worker process calls models: each call waits for its turn at the server, keeps within bounds, and is counted.

`choice` knows which models there are, and `session` what belongs to one run (its record, its budget, its events). Here
is what all runs share.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import structlog

from backplane.domain.budgets import MICRO
from backplane.domain.models import ModelName
from backplane.errors import ModelError, Unavailable
from backplane.limits.buckets.base import Bucket, TokenBuckets
from backplane.limits.slots.base import SlotRequest, Slots
from backplane.settings import Settings, fixed
from backplane.store import ModelServerTable
from worker.llm.base import (
    CallLimits,
    ModelRequest,
    ModelResponse,
    SizeSink,
    TextSink,
    Usage,
)
from worker.llm.catalogue import ServerSpec
from worker.llm.choice import Candidate, ModelChoice, open_models
from worker.llm.retries import CallRetryPolicy, pause_before_next
from worker.metrics import WorkerMetrics

log = structlog.get_logger()

LOCAL_TOKENS_PER_SECOND = 10.0
"""What a machine with eight cores can do for five agents at once; `agentctl calibrate` finds a machine's own number."""
FIRST_OUTPUT_ESTIMATE = 256
"""Tokens that an answer is expected to have before any answer of the model was seen."""
ESTIMATE_WEIGHT = 0.2
"""The weight of the newest answer, against all before it."""


@dataclass(frozen=True, slots=True)
class TokenRates:
    """What an agent, and all agents of a user, may have generated: tokens a second (0: any number), and at once. A rate
    of None is LOCAL_TOKENS_PER_SECOND at servers that share the workers' processors, and any number at others."""

    agent_per_second: float | None
    agent_burst: float
    user_per_second: float | None
    user_burst: float

    def buckets(self, user_id: str, agent: str, spec: ServerSpec) -> list[Bucket]:
        """The buckets from which a call of this server takes."""
        wanted = (
            Bucket(f"agent:{user_id}/{agent}", self._rate(self.agent_per_second, spec), self.agent_burst),
            Bucket(f"user:{user_id}", self._rate(self.user_per_second, spec), self.user_burst),
        )
        return [bucket for bucket in wanted if bucket.per_second]

    def reason(self, spec: ServerSpec) -> str:
        """Why a call of this server waits, by the settings that an operator would turn."""
        limits = (
            (self._rate(self.agent_per_second, spec), "for an agent (AGENT_TOKENS_PER_SECOND)"),
            (self._rate(self.user_per_second, spec), "for all agents of a user (USER_TOKENS_PER_SECOND)"),
        )
        words = " and ".join(f"{rate:g} a second {whose}" for rate, whose in limits if rate)
        if not spec.is_local or None not in (self.agent_per_second, self.user_per_second):
            return f"the limit is {words}"
        return (
            f"the limit is {words}, by default, as the model server {spec.name} seems to share this machine's "
            "processors; 0 is no limit"
        )

    @staticmethod
    def _rate(given: float | None, spec: ServerSpec) -> float:
        if given is None:
            return LOCAL_TOKENS_PER_SECOND if spec.is_local else 0.0
        return given


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """`record_bytes`: of a prompt, what is kept."""

    call: CallLimits
    retry: CallRetryPolicy
    input_bytes: int
    record_bytes: int
    rates: TokenRates


class ModelGateway:
    """There is one for each process. `models`: which models may be asked, and where."""

    def __init__(
        self, models: ModelChoice, limits: GatewayLimits, slots: Slots, buckets: TokenBuckets, metrics: WorkerMetrics
    ) -> None:
        self.models = models
        self.limits = limits
        self._slots = slots
        self._buckets = buckets
        self._metrics = metrics
        self._usual_output: dict[str, float] = {}

    def pause_before_next(self, candidate: Candidate, error: ModelError, tries: int) -> float | None:
        """Seconds until the model is tried again; None: the next model is asked."""
        jitter = random.random()  # noqa: S311 - jitter, no secret
        pause = pause_before_next(error, tries, self.limits.retry, jitter)
        if pause is not None:
            self._metrics.model_retried(candidate.name.server, error.code)
        return pause

    def usual_output(self, candidate: Candidate, most: int) -> int:
        """Tokens that an answer of this model is likely to have."""
        usual = self._usual_output.get(self._usual_key(candidate), FIRST_OUTPUT_ESTIMATE)
        return max(min(round(usual), most), 1)

    @asynccontextmanager
    async def tokens(
        self,
        candidate: Candidate,
        buckets: Sequence[Bucket],
        run_id: str,
        estimate: int,
        on_wait: Callable[[float], None],
    ) -> AsyncIterator[Callable[[int], None]]:
        """Waits until so many tokens may be generated. The block gets a function by which it reports how many it took;
        without a report it took none."""
        if not buckets:
            yield lambda _: None
            return
        began = time.monotonic()
        await self._buckets.take(run_id, buckets, estimate, on_wait)
        self._metrics.model_waited(candidate.name.server, "tokens", time.monotonic() - began)
        actual = 0

        def took(tokens: int) -> None:
            nonlocal actual
            actual = tokens

        try:
            yield took
        finally:
            try:
                await self._buckets.settle(buckets, estimate, actual)
            except Unavailable as error:
                log.warning("the token buckets keep an estimate", run=run_id, error=error.message)

    @asynccontextmanager
    async def turn(
        self, candidate: Candidate, user_id: str, run_id: str, call_id: str, on_wait: Callable[[int], None]
    ) -> AsyncIterator[None]:
        """Waits until the server takes a call; the block is the call."""
        if not candidate.spec.slots:
            yield
            return
        request = SlotRequest(candidate.name.server, candidate.name.model, user_id, run_id, call_id)
        spec, began = candidate.spec, time.monotonic()
        async with self._slots.hold(request, parallel=spec.slots, models=spec.max_loaded, on_wait=on_wait):
            self._metrics.model_waited(candidate.name.server, "slot", time.monotonic() - began)
            yield

    async def complete(
        self, candidate: Candidate, request: ModelRequest, on_text: TextSink, on_size: SizeSink | None = None
    ) -> ModelResponse:
        """One try, now. Raises ModelError."""
        began, status = time.monotonic(), "completed"
        try:
            response = await candidate.server.complete(
                candidate.name.model, request, self.limits.call, on_text, on_size
            )
        except ModelError as error:
            status = error.code
            raise
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            self._count(candidate, status, time.monotonic() - began)
        key, tokens = self._usual_key(candidate), float(response.usage.output_tokens)
        usual = self._usual_output.get(key, tokens)
        self._usual_output[key] = usual + ESTIMATE_WEIGHT * (tokens - usual)
        return response

    def spent(self, candidate: Candidate, usage: Usage) -> int | None:
        """Count what a try took. Returns its price in millionths of a dollar; None: it is not known."""
        price = candidate.price
        micro_usd = price.micro_usd(usage.input_tokens, usage.output_tokens) if price else None
        label = self.models.label(candidate.name)
        self._metrics.model_spent(
            candidate.name.server, label, usage.input_tokens, usage.output_tokens, (micro_usd or 0) / MICRO
        )
        return micro_usd

    async def embed(self, name: ModelName, texts: Sequence[str], user_id: str, run_id: str) -> list[list[float]]:
        """One vector for each text, by this model alone: vectors of another one would not fit. Raises ModelError."""
        candidate, tries = self.models.candidate(name), 0
        while True:
            tries += 1
            try:
                async with self.turn(candidate, user_id, run_id, str(uuid4()), lambda _: None):
                    return await self._embed_once(candidate, texts)
            except ModelError as error:
                pause = self.pause_before_next(candidate, error, tries)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _embed_once(self, candidate: Candidate, texts: Sequence[str]) -> list[list[float]]:
        began, status = time.monotonic(), "completed"
        try:
            vectors, usage = await candidate.server.embed(candidate.name.model, texts, self.limits.call)
        except ModelError as error:
            status = error.code
            raise
        finally:
            self._count(candidate, status, time.monotonic() - began)
        self.spent(candidate, usage)
        return vectors

    def _count(self, candidate: Candidate, status: str, seconds: float) -> None:
        self._metrics.model_called(candidate.name.server, self.models.label(candidate.name), status, seconds)

    def _usual_key(self, candidate: Candidate) -> str:
        return f"{candidate.name.server}/{self.models.label(candidate.name)}"


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    slots: Slots,
    buckets: TokenBuckets,
    metrics: WorkerMetrics,
    table: ModelServerTable | None = None,
) -> AsyncIterator[ModelGateway]:
    """Raises InvalidInput when the settings cannot be used; no server is asked. `slots` must be running. `table`: of
    servers that come and go; without it there are those of the settings alone."""
    limits = _limits_of(settings)
    async with open_models(settings, limits.call, slots, table) as models:
        yield ModelGateway(models, limits, slots, buckets, metrics)


def _limits_of(settings: Settings) -> GatewayLimits:
    return GatewayLimits(
        call=CallLimits(settings.model_timeout_seconds, settings.model_silence_seconds, fixed.MODEL_MAX_OUTPUT_BYTES),
        retry=CallRetryPolicy(settings.model_retries, fixed.MODEL_RETRY_MAX_SECONDS),
        input_bytes=settings.model_max_input_bytes,
        record_bytes=fixed.MODEL_RECORD_MAX_BYTES,
        rates=TokenRates(
            settings.agent_tokens_per_second,
            settings.agent_tokens_burst,
            settings.user_tokens_per_second,
            settings.user_tokens_burst,
        ),
    )
