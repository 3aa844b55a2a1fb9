"""Renews the leases of a process whose event loop is blocked, so that one function that blocks does not cost all the
others that share the loop with it their runs.

A thread asks the loop for an answer. Where none comes, it renews what the heartbeat would: the leases of the runs, of
the model slots, and of the process itself, by connections of its own, which it opens then and closes when the loop goes
on. A run that turns out to be lost is not renewed again; nothing else is decided here, as fencing is the database's.

A loop that is blocked for BLOCKED_LEASES leases may never go on. Then nothing is renewed any more, and the process is
to end: it can do nothing else for its runs. Where it is known whose code blocks, the other runs are handed back before,
so that they go on elsewhere at once, and a worker lost counts for that one alone.

A thread needs the interpreter for a moment. Code of an extension that keeps it to itself (a regular expression that
backtracks for long is the best known) stops the thread too, and the leases end.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

import structlog

from backplane.errors import Unavailable
from backplane.process.loop_watchdog import owner_at_work
from backplane.queue.base import RunOutcome, Settlement
from backplane.resources import LeaseConnections, Resources, connect_for_leases
from backplane.settings import Settings
from backplane.store import Store
from worker.consumer import ClaimedRun, Registration

BLOCKED_LEASES = 4
"""For so many leases they are renewed: a minute by default, which is longer than code blocks that somebody waits for,
and no longer than a liveness probe waits."""
LOOKS_A_HEARTBEAT = 5
"""How often the loop is asked in the time of a heartbeat. A loop that blocks right before a renewal has its leases
renewed after 1.4 heartbeats: there are three in a lease."""

log = structlog.get_logger()


class KeeperAction(Enum):
    WAIT = auto()
    RENEW = auto()
    GIVE_UP = auto()


@dataclass(frozen=True, slots=True)
class KeeperRules:
    """All in seconds."""

    lease: float
    heartbeat: float

    @property
    def look(self) -> float:
        return self.heartbeat / LOOKS_A_HEARTBEAT

    def action(self, blocked: float, since_renewal: float) -> KeeperAction:
        """What to do for a loop that has been blocked for so long. `since_renewal`: since the keeper has renewed the
        leases; infinite: it has not yet."""
        if blocked >= BLOCKED_LEASES * self.lease:
            return KeeperAction.GIVE_UP
        return KeeperAction.RENEW if since_renewal >= self.heartbeat else KeeperAction.WAIT


class ProcessLeases:
    """The leases of this process. `running` is the consumer's own table. `keep_place`: renews what else the process
    has, by the given store. It is used in the keeper's thread; what belongs to the blocked loop is only read."""

    def __init__(
        self,
        resources: Resources,
        registration: Registration,
        running: Mapping[str, ClaimedRun],
        keep_place: Callable[[Store], Awaitable[None]],
    ) -> None:
        self._resources = resources
        self._registration = registration
        self._running = running
        self._keep_place = keep_place
        self._lost: set[tuple[str, int]] = set()

    async def renew(self, own: LeaseConnections, seconds: float) -> bool:
        """Whether all was renewed, each by itself: a database that hangs must not end a lease in Redis. It takes
        `seconds` at most."""
        parts = (self._renew_runs(own), own.slots.renew_for(self._resources.slots), self._keep_place(own.store))
        return all(await asyncio.gather(*(self._is_done(part, seconds) for part in parts)))

    async def hand_back(self, own: LeaseConnections, culprit: str, seconds: float) -> None:
        """Hand back all runs but the `culprit`. What they still do here is refused, once others have them."""
        claims = [one.claim for run_id, one in dict(self._running).items() if run_id != culprit]
        await self._is_done(own.queue.settle([Settlement(claim, RunOutcome.HANDED_BACK) for claim in claims]), seconds)

    async def _is_done(self, part: Awaitable[None], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await part
        except Unavailable as error:
            log.warning("a lease is not renewed beside the blocked loop", part=error.part, error=error.message)
            return False
        except TimeoutError:
            log.warning("a lease is not renewed beside the blocked loop", error=f"no answer in {seconds:g} s")
            return False
        return True

    async def _renew_runs(self, own: LeaseConnections) -> None:
        there = [one for run_id, one in dict(self._running).items() if (run_id, one.claim.generation) not in self._lost]
        asked_at, process = time.monotonic(), self._registration
        claims = [one.claim for one in there]
        renewed = await own.queue.renew(process.worker_id, process.slots, claims, queues=process.queues, may_lead=False)
        for one in there:
            if one.claim.run_id in renewed.lost:
                self._lost.add((one.claim.run_id, one.claim.generation))
            else:
                one.lease_renewed(asked_at)


class LeaseKeeper:
    """`connect`: opens the connections, on the loop of the keeper's thread. `give_up`: called once when the loop has
    been blocked for too long."""

    def __init__(
        self,
        rules: KeeperRules,
        leases: ProcessLeases,
        connect: Callable[[], AbstractAsyncContextManager[LeaseConnections]],
        give_up: Callable[[], None],
    ) -> None:
        self._rules = rules
        self._leases = leases
        self._connect = connect
        self._give_up = give_up
        self._ended = threading.Event()
        self._loop = asyncio.get_running_loop()
        target = partial(contextvars.copy_context().run, self._run)  # so that what it logs names the worker
        self._thread = threading.Thread(target=target, name="lease keeper", daemon=True)

    @classmethod
    def of(cls, settings: Settings, leases: ProcessLeases, platform: str, give_up: Callable[[], None]) -> "LeaseKeeper":
        """For the running event loop. `platform`: of the opened queue."""
        rules = KeeperRules(settings.lease_seconds, settings.heartbeat_seconds)
        return cls(rules, leases, partial(connect_for_leases, settings, platform), give_up)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """It renews nothing after this, but for what it is just about to."""
        self._ended.set()

    def _run(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            while not self._ended.wait(self._rules.look):
                answered = threading.Event()
                self._loop.call_soon_threadsafe(answered.set)
                if not answered.wait(self._rules.look):
                    try:
                        self._keep(answered)
                    except Exception:
                        log.exception("the leases of a blocked loop are not renewed")

    def _keep(self, answered: threading.Event) -> None:
        """Until the loop has answered."""
        rules, blocked, since_renewal, at = self._rules, self._rules.look, float("inf"), time.monotonic()
        with asyncio.Runner() as runner:
            stack = AsyncExitStack()
            try:
                own = runner.run(stack.enter_async_context(self._connect()))
                while not (answered.is_set() or self._ended.is_set()):
                    match rules.action(blocked, since_renewal):
                        case KeeperAction.RENEW:
                            if runner.run(self._leases.renew(own, rules.heartbeat)):
                                since_renewal = 0.0
                        case KeeperAction.GIVE_UP:
                            culprit = owner_at_work(self._loop)
                            log.critical(
                                "the event loop is blocked for too long: its leases are renewed no more, "
                                "and other processes take its runs",
                                blocked_seconds=round(blocked, 1),
                                run=culprit or "unknown",
                            )
                            if culprit:
                                runner.run(self._leases.hand_back(own, culprit, rules.heartbeat))
                            self._give_up()
                            return self._wait_for(answered)
                    answered.wait(rules.look)
                    # A process that was stopped as a whole was not blocked meanwhile.
                    before, at = at, time.monotonic()
                    passed = min(at - before, rules.lease)
                    blocked, since_renewal = blocked + passed, since_renewal + passed
            finally:
                runner.run(stack.aclose())

    def _wait_for(self, answered: threading.Event) -> None:
        while not (answered.wait(self._rules.look) or self._ended.is_set()):
            pass
