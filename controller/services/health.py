"""Checks every service when it is due, and writes what that came to.

One controller does so at a time, by a lease; two at once, for a moment, do no harm, since the second result is dropped
(`backplane.store.services`). What a slow service takes holds up no other one, while fewer than CHECKS_AT_ONCE do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from backplane.bus.base import Doorbell
from backplane.domain.services import (
    CheckResult,
    Judgement,
    Report,
    Service,
    ServiceSpec,
    ServiceStatus,
    due_at,
    is_due,
    judged,
)
from backplane.errors import Unavailable
from backplane.process.tasks import end
from backplane.settings import fixed
from backplane.store import Services
from controller.batches import repeat_batches
from controller.leader import Leader
from controller.metrics import ControllerMetrics

CHECKS_AT_ONCE = 50
"""A check takes at most half a minute, so 50 services that never answer hold up the others no longer than that."""

Check = Callable[[ServiceSpec], Awaitable[CheckResult]]

log = structlog.get_logger()


class ServiceHealthLoop:
    def __init__(
        self, services: Services, doorbell: Doorbell, check: Check, leader: Leader, metrics: ControllerMetrics
    ) -> None:
        self._services = services
        self._doorbell = doorbell
        self._check = check
        self._leader = leader
        self._metrics = metrics
        self._checking: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            await repeat_batches(self.work, what="services", pause_seconds=fixed.SERVICE_POLL_SECONDS)
        finally:
            await end(*self._checking.values())
            await self._leader.give_up()

    async def work(self) -> bool:
        """Begin the checks that are due, the longest due first. Raises Unavailable."""
        if not await self._leader.leads():
            self._metrics.services({})
            return False
        there = await self._services.list_all()
        self._metrics.services({one.name: one.health.status is ServiceStatus.UP for one in there})
        now = datetime.now(UTC)
        due = [
            service
            for service in there
            if service.deleted_at is None and service.id not in self._checking and is_due(service, now)
        ]
        due.sort(key=due_at)
        for service in due[: CHECKS_AT_ONCE - len(self._checking)]:
            task = asyncio.create_task(self.check(service), name=f"check {service.name}")
            self._checking[service.id] = task
            task.add_done_callback(lambda _, id=service.id: self._checking.pop(id))  # type: ignore[misc]
        return False

    async def check(self, service: Service) -> None:
        result = await self._check(service.spec)
        judgement = judged(service.health, service.spec.check, result)
        try:
            announced = await self._services.write_health(service, judgement)
        except Unavailable as error:
            log.warning("the health of a service was not written", service=service.name, error=error.message)
            return
        if announced is None:
            return
        self._metrics.service_checked(failed=bool(result.error))
        self._log(service, judgement)
        if announced:
            with suppress(Unavailable):
                await self._doorbell.ring(announced)

    def _log(self, service: Service, judgement: Judgement) -> None:
        if judgement.report is None:
            return
        lines = log.bind(service=service.name, status=judgement.health.status.value)
        if judgement.report is Report.UP:
            lines.info("a service is up")
        elif judgement.report is Report.DOWN:
            lines.warning("a service is down", reason=judgement.health.reason)
        else:
            lines.warning("a service goes up and down; single changes are not reported until it has settled")
