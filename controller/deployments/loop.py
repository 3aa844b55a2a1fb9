"""Makes deployments as they are wanted, again and again, while this controller has the lease for it.

Two at once, for a moment, do no harm: what is applied is the same, what is deleted is found by labels, and a row takes
only what was found of its newest version. Each pass looks at the target, writes what is there, and then changes what is
not as declared. A target that refuses or does not answer is asked again with growing pauses, and the row says why.
"""

import asyncio
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from backplane.domain.deployments import REASON_CHARS, Deployment, DeploymentStatus, Rollout
from backplane.errors import Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import end
from backplane.settings import fixed
from backplane.store import DeploymentStore
from controller.deployments.collecting import Collector
from controller.deployments.decision import (
    DeploymentStep,
    events_of,
    outcome_of,
    refused,
    rollout_since,
    status_of,
    step_of,
    wants_rollback,
)
from controller.deployments.logs import LogFollower
from controller.deployments.metrics import DeploymentMetrics
from controller.deployments.target import DeployTarget, Removal, TargetRefused
from controller.deployments.wanted import WantedDeployments
from controller.leader import Leader

AT_ONCE = 8
"""Deployments of a user that are written at once: each is up to seven requests, one after another. Of a user, for a
registry that never answers keeps them for long, and is to keep nobody else's."""
PASS_SECONDS = 5.0
"""A pass waits no longer for what it began."""
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_UNAVAILABLE = 1.0, 60.0, 5.0
"""Seconds between tries to apply what the target does not take: twice as long each time. The last one is for a target
that does not answer, or not yet: a namespace that is being deleted is gone soon."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a deployment, as it was wanted in this version, could not be written the last time."""

    version: int
    reason: str
    is_refused: bool
    not_before: float
    pause: float


class DeploymentsLoop:
    def __init__(
        self, store: DeploymentStore, target: DeployTarget, leader: Leader, metrics: DeploymentMetrics
    ) -> None:
        self._store = store
        self._wanted = WantedDeployments(store)
        self._target = target
        self._leader = leader
        self._metrics = metrics
        self._logs = LogFollower(store, target)
        self._collector = Collector(store, target)
        self._troubles: dict[str, _Trouble] = {}
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._versions: dict[str, int] = {}
        """Of those at work: as they were wanted when that began."""
        self._rooms = weakref.WeakValueDictionary[str, asyncio.Semaphore]()
        self._complaint = ""

    async def run(self) -> None:
        waits = pauses()
        try:
            while True:
                try:
                    is_moving = await self.work()
                    pause = fixed.DEPLOYMENTS_LOOK_SECONDS if is_moving else fixed.DEPLOYMENTS_REST_SECONDS
                    waits, self._complaint = pauses(), ""
                except Unavailable as error:
                    pause = next(waits)
                    self._complain(error.message)
                await asyncio.sleep(pause)
        finally:
            await end(*self._at_work.values())
            await self._collector.stop()
            await self._logs.stop()
            await self._leader.give_up()
            await self._target.close()

    async def work(self) -> bool:
        """One pass. Returns whether something moves, so that the next one is to be soon. Raises Unavailable."""
        if not await self._leader.leads():
            self._metrics.another_leads()
            await self._logs.stop()
            return False
        deployments = await self._wanted.read()
        began = time.monotonic()
        try:
            await self._target.look(deployments)
        except Unavailable as error:
            await self._nobody_knows(deployments, error.message)
            raise
        self._metrics.saw(deployments, time.monotonic() - began)
        self._troubles = {one.id: self._troubles[one.id] for one in deployments if one.id in self._troubles}
        await self._look_after_all(deployments)
        await self._collector.collect(self._target.left())
        if self._leader.is_certain:
            await self._logs.follow(deployments)
        else:
            await self._logs.stop()
        return any(_moves(one) for one in deployments)

    async def _look_after_all(self, deployments: Sequence[Deployment]) -> None:
        """What takes long (a pull, an end) goes on beside the next pass, until something else is wanted."""
        for one in deployments:
            if one.id in self._at_work and self._versions[one.id] != one.version:
                task = self._at_work[one.id]
                await end(task)
                self._is_done(one.id, task)
            if one.id not in self._at_work:
                task = asyncio.create_task(self._look_after(one), name=f"deployment {one.id}")
                self._at_work[one.id], self._versions[one.id] = task, one.version
                task.add_done_callback(lambda done, id=one.id: self._is_done(id, done))  # type: ignore[misc]
        if self._at_work:
            await asyncio.wait(list(self._at_work.values()), timeout=PASS_SECONDS)

    def _is_done(self, id: str, task: "asyncio.Task[None]") -> None:
        if self._at_work.get(id) is task:
            del self._at_work[id], self._versions[id]

    async def _look_after(self, deployment: Deployment) -> None:
        try:
            room = self._rooms.setdefault(deployment.user_id, asyncio.Semaphore(AT_ONCE))
            async with room:
                await self._make_so(deployment)
        except Unavailable as error:
            log.warning("a deployment is not looked after", deployment=deployment.id, error=error.message)
        except Exception as fault:
            log.error("a deployment failed by a fault of the platform", deployment=deployment.id, exc_info=fault)

    async def _make_so(self, deployment: Deployment) -> None:
        """Raises Unavailable when the database is away."""
        seen = self._target.seen(deployment)
        rollout = seen.rollout
        step = step_of(deployment, seen)
        if step is DeploymentStep.NOTHING:
            self._troubles.pop(deployment.id, None)
        elif step is DeploymentStep.APPLY:
            rollout = await self._apply(deployment, rollout)
        elif (left := await self._remove(deployment)) is None:
            return
        else:
            rollout = replace(rollout, reason=left)
        await self._write(deployment, rollout_since(deployment.rollout, rollout, datetime.now(UTC)))

    async def _apply(self, deployment: Deployment, rollout: Rollout) -> Rollout:
        """What is there now: what was seen, and why it cannot be otherwise."""
        if self._may_try(deployment):
            await self._try_to_apply(deployment)
        trouble = self._troubles.get(deployment.id)
        if trouble is None:
            # What was seen is about what was there before.
            return replace(rollout, is_complete=False, has_failed=False, reason="")
        if trouble.is_refused:
            return refused(deployment, rollout, trouble.reason)
        return replace(rollout, is_complete=False, has_failed=False, reason=trouble.reason)

    async def _try_to_apply(self, deployment: Deployment) -> None:
        assert deployment.effective is not None
        try:
            await self._target.apply(deployment)
        except TargetRefused as error:
            self._failed(deployment, error.reason, is_refused=True)
            self._metrics.applied("refused")
        except Unavailable as error:
            self._failed(deployment, error.message, is_refused=False)
            self._metrics.applied("unavailable")
        else:
            self._troubles.pop(deployment.id, None)
            self._metrics.applied("ok")
            log.info("a deployment is applied", deployment=deployment.id, revision=deployment.effective.number)

    async def _remove(self, deployment: Deployment) -> str | None:
        """What is left, or why it is not known; None: nothing, and the row is gone."""
        if not self._may_try(deployment):
            return self._troubles[deployment.id].reason
        try:
            grace = deployment.delete_grace_seconds
            left = await self._target.remove(Removal(deployment.id, deployment.namespace, grace))
        except TargetRefused as error:
            self._failed(deployment, error.reason, is_refused=True)
            return error.reason
        except Unavailable as error:
            self._failed(deployment, error.message, is_refused=False)
            return error.message
        if left:
            return f"still there: {left}"
        await self._store.gone(deployment)
        log.info("a deployment is gone", deployment=deployment.id, agent=deployment.agent_id)
        return None

    async def _write(self, deployment: Deployment, rollout: Rollout) -> None:
        """Raises Unavailable."""
        status, reason = status_of(deployment, rollout)
        events = list(events_of(deployment, status, reason, rollout))
        is_news = (status, reason) != (deployment.status, deployment.reason) or _differs(rollout, deployment.rollout)
        if (events or is_news) and not await self._store.write_rollout(deployment, rollout, status, reason, events):
            return
        outcome = outcome_of(deployment, rollout)
        if outcome is None or not await self._store.end_revision(deployment, outcome, rollout.reason):
            return
        self._metrics.rollout_ended(outcome)
        log.info("a rollout has ended", deployment=deployment.id, revision=rollout.revision, outcome=outcome.value)
        if wants_rollback(deployment, outcome) and await self._store.roll_back(deployment, reason) is not None:
            self._metrics.rolled_back()
            log.warning("a deployment goes back by itself", deployment=deployment.id, revision=rollout.revision)

    async def _nobody_knows(self, deployments: Sequence[Deployment], why: str) -> None:
        """The target does not answer: what is waited for says so, and what runs is left as it was last seen."""
        reason = f"the target cannot be asked: {why}"[:REASON_CHARS]
        for one in deployments:
            if _moves(one) and one.reason != reason:
                await self._store.write_rollout(one, one.rollout, one.status, reason)

    def _may_try(self, deployment: Deployment) -> bool:
        """What is wanted anew is tried at once."""
        trouble = self._troubles.get(deployment.id)
        if trouble is not None and trouble.version != deployment.version:
            del self._troubles[deployment.id]
            trouble = None
        return trouble is None or time.monotonic() >= trouble.not_before

    def _failed(self, deployment: Deployment, reason: str, *, is_refused: bool) -> None:
        before = self._troubles.get(deployment.id)
        longest = LONGEST_PAUSE if is_refused else LONGEST_PAUSE_UNAVAILABLE
        pause = min(2 * before.pause, longest) if before else FIRST_PAUSE
        trouble = _Trouble(deployment.version, reason, is_refused, time.monotonic() + pause, pause)
        self._troubles[deployment.id] = trouble
        if before is None or before.reason != reason:
            log.warning("a deployment cannot be made so", deployment=deployment.id, reason=reason)

    def _complain(self, message: str) -> None:
        if message != self._complaint:
            log.warning("deployments are not looked after", error=message)
        self._complaint = message


def _moves(deployment: Deployment) -> bool:
    return deployment.deleted_at is not None or (
        deployment.status is DeploymentStatus.DEPLOYING and not deployment.awaits_approval
    )


def _differs(one: Rollout, other: Rollout) -> bool:
    return replace(one, seen_at=None) != replace(other, seen_at=None) or other.seen_at is None
