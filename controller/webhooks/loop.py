"""Sends the webhooks of the outbox: claims what is due, sends it, and writes how it went.

A claim is only as large as there are free places, so what is claimed is sent at once and a lease covers one attempt. A
message whose answer is lost (this process is killed, the database is away for longer than a lease) is sent again under
the same id: receivers know it by `Webhook-Id`. URLs are not logged, since many are as good as a password.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

import structlog

from backplane.domain.retry import RetryPolicy
from backplane.domain.webhooks import Delivery
from backplane.errors import Unavailable
from backplane.process.retrying import log_unavailable, pauses, until_available
from backplane.process.tasks import end
from backplane.settings import fixed
from backplane.store import Webhooks as Outbox
from controller.metrics import ControllerMetrics
from controller.webhooks.sender import ReceiverAnswer, Sender

LAST_WORDS_SECONDS = 2.0
"""How long, beyond an attempt's own limit, it may take to write how it went."""

log = structlog.get_logger()
_log_late = log_unavailable("what came of a webhook is entered late")


def lease_for(attempt_seconds: float) -> float:
    """After how many seconds another controller may send what one has begun to send. It is longer than an attempt, so
    that none is sent twice."""
    return max(fixed.WEBHOOK_LEASE_SECONDS, 2 * attempt_seconds)


def share_of_user(at_once: int) -> int:
    """How many of a controller's `at_once` attempts may be one user's."""
    return max(1, at_once // fixed.WEBHOOK_USER_SHARE)


@dataclass(frozen=True, slots=True)
class SendingRules:
    """How often webhooks are looked for, and how long one that was taken belongs to its controller, in seconds.
    `at_once` attempts are under way at most, `user_at_once` of them of one user."""

    poll_seconds: float
    lease_seconds: float
    at_once: int
    user_at_once: int


class WebhookLoop:
    """`policy`: how often and with which pauses one message is tried."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        policy: RetryPolicy,
        metrics: ControllerMetrics,
        rules: SendingRules,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._policy = policy
        self._metrics = metrics
        self._rules = rules
        self._sending: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        waits = pauses()
        while True:
            try:
                claimed = await self._claim()
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("cannot look for webhooks", error=error.message, pause=round(pause, 1))
                await asyncio.sleep(pause)
                continue
            for delivery in claimed:
                task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.id}")
                self._sending[task] = delivery.user_id
                task.add_done_callback(self._sending.pop)
            if claimed or len(self._sending) == self._rules.at_once:
                # Each place that gets free may be used at once.
                await asyncio.wait(self._sending, timeout=self._rules.poll_seconds, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(self._rules.poll_seconds)

    async def drain(self, seconds: float) -> None:
        """Let what is being sent be answered; what is not by then is sent again when its lease is over."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=seconds + LAST_WORDS_SECONDS)
        await end(*self._sending)

    async def _claim(self) -> list[Delivery]:
        free = self._rules.at_once - len(self._sending)
        if not free:
            return []
        return await self._outbox.claim(
            free,
            lease_seconds=self._rules.lease_seconds,
            user_limit=self._rules.user_at_once,
            sending=Counter(self._sending.values()),
        )

    async def _deliver(self, delivery: Delivery) -> None:
        lines = log.bind(
            delivery=delivery.id, run=delivery.run_id, webhook_event=delivery.event, attempt=delivery.attempt
        )
        try:
            answer = await self._sender.send(delivery)
        except Exception as error:
            lines.error("webhook failed by a fault of the platform", exc_info=error)
            answer = ReceiverAnswer(error="a fault of the platform")
        if answer.delivered and answer.code is not None:
            code = answer.code
            await until_available(lambda: self._outbox.delivered(delivery, code), _log_late)
            self._metrics.webhook("delivered")
            lines.info("webhook delivered", code=code)
            return
        pause = pause_after(self._policy, delivery.attempt, answer, draw=random.random())  # noqa: S311 - jitter
        await until_available(lambda: self._outbox.failed(delivery, answer.error, answer.code, pause), _log_late)
        self._metrics.webhook("given_up" if pause is None else "failed")
        if pause is None:
            lines.warning("webhook given up", error=answer.error)
        else:
            lines.info("webhook failed", error=answer.error, pause=round(pause, 1))


def pause_after(policy: RetryPolicy, attempt: int, answer: ReceiverAnswer, *, draw: float) -> float | None:
    """Seconds until the next attempt; None: there is none. A receiver may ask for more, up to the longest pause."""
    pause = policy.pause(attempt, retryable=not answer.final, draw=draw)
    return None if pause is None else max(pause, min(answer.retry_after, policy.longest))
