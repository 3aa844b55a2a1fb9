"""Looks after the pools: lost processes, agents that need a place, agents that may sleep, and how many processes there
are.

One process does so at a time, by a lease; two at once, for a moment, do no harm: each step is a transaction under its
pool's lock, and a process too many is ended when it has stood empty. It looks every second where pools are in use, more
seldom where none is, and at once when somebody found no room for an agent.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from backplane.agents.base import DRAIN
from backplane.domain.agents import Occupancy, PoolCounts, PoolProcess
from backplane.errors import NotFound, Unavailable
from backplane.process.tasks import run_together
from backplane.resources import Resources
from backplane.run_actions.pushing import place_waiting
from backplane.settings import fixed
from controller.leader import Leader
from controller.metrics import ControllerMetrics
from controller.pools.decision import PoolNeeds, ProcessLoad, change_of
from controller.pools.launcher import Launcher

log = structlog.get_logger()


@dataclass(slots=True)
class _Coming:
    """Processes of a pool that were started and have not entered themselves: since when there are any, when to ask next
    what keeps them, and what was found."""

    since: float
    ask_at: float = 0.0
    found: str | None = None


class PoolLoop:
    """`launcher`: None where processes are started by hand."""

    def __init__(
        self, resources: Resources, leader: Leader, launcher: Launcher | None, metrics: ControllerMetrics
    ) -> None:
        self._resources = resources
        self._leader = leader
        self._launcher = launcher
        self._metrics = metrics
        self._called = asyncio.Event()
        self._empty_since: dict[str, float] = {}
        self._sleep_due = self._tidy_due = 0.0
        self._coming: dict[str, _Coming] = {}
        self._shortages: dict[str, str] = {}
        self._written: dict[str, str] = {}
        self._write_due = 0.0

    async def run(self) -> None:
        try:
            await run_together(listen=self._listen(), look=self._look_again_and_again())
        finally:
            await self._leader.give_up()

    async def _look_again_and_again(self) -> None:
        while True:
            self._called.clear()
            in_use = False
            try:
                if await self._leader.leads():
                    in_use = await self.look()
            except Unavailable as error:
                log.warning("cannot look after the pools", part=error.part, error=error.message)
            pause = fixed.AGENT_MANAGE_SECONDS if in_use else fixed.AGENT_REPAIR_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._called.wait()

    async def look(self) -> bool:
        """One pass over all pools. Whether any is in use. Raises Unavailable."""
        store = self._resources.store
        for lost in await store.agent_processes.expire():
            log.warning("a process of a pool was lost; its agents go elsewhere", pool=lost.pool, process=lost.id)
            self._metrics.pool_process_lost()
            with suppress(Unavailable):
                await self._resources.agent_registry.mark_lost(lost)
        counts = await store.agent_pools.counts()
        if any(one.unplaced for one in counts):
            for one in counts:
                if one.unplaced:
                    await self._place(one.pool.name)
            counts = await store.agent_pools.counts()
        await self._put_to_sleep(counts)
        await self._tidy(counts)
        if self._launcher is not None:
            await self._scale(self._launcher, counts)
        return any(one.agents or one.processes or one.pool.min_processes for one in counts)

    async def _listen(self) -> None:
        async with self._resources.agent_registry.commands("*") as commands:
            async for command in commands:
                if not command.process_id:
                    self._called.set()

    async def _place(self, pool: str) -> None:
        resources = self._resources
        await place_waiting(resources.store, resources.queue, resources.event_log, pool)

    async def _put_to_sleep(self, counts: Sequence[PoolCounts]) -> None:
        if time.monotonic() < self._sleep_due:
            return
        self._sleep_due = time.monotonic() + fixed.AGENT_REPAIR_SECONDS
        for one in counts:
            if one.placed:
                await self._resources.store.agent_processes.put_to_sleep(one.pool.name)

    async def _tidy(self, counts: Sequence[PoolCounts]) -> None:
        if time.monotonic() < self._tidy_due:
            return
        self._tidy_due = time.monotonic() + fixed.AGENT_REGISTRY_HEARTBEAT_SECONDS
        with suppress(Unavailable):
            for one in counts:
                await self._resources.agent_registry.tidy(one.pool.name)

    async def _scale(self, launcher: Launcher, counts: Sequence[PoolCounts]) -> None:
        by_pool: dict[str, list[Occupancy]] = {one.pool.name: [] for one in counts}
        for there in await self._resources.store.agent_processes.all():
            if there.process.pool in by_pool:
                by_pool[there.process.pool].append(there)
        self._note_empty(there for pool in by_pool.values() for there in pool)
        for one in counts:
            try:
                shortage = await self._scale_one(launcher, one, by_pool[one.pool.name])
            except Unavailable as error:
                shortage = error.message
            if shortage is None:
                self._shortages.pop(one.pool.name, None)
                continue
            if self._shortages.get(one.pool.name) != shortage:
                log.warning("the pool has fewer processes than it wants", pool=one.pool.name, error=shortage)
            self._shortages[one.pool.name] = shortage
        await self._write_shortages()

    async def _write_shortages(self) -> None:
        """For the API, which explains by them why an agent waits."""
        now = time.monotonic()
        if self._shortages == self._written and (not self._shortages or now < self._write_due):
            return
        self._write_due = now + fixed.AGENT_SHORTAGE_SECONDS
        with suppress(Unavailable):
            await self._resources.agent_registry.write_shortages(
                self._shortages, keep_seconds=fixed.AGENT_SHORTAGE_KEEP_SECONDS
            )
            self._written = dict(self._shortages)

    async def _scale_one(self, launcher: Launcher, counts: PoolCounts, there: Sequence[Occupancy]) -> str | None:
        """Why the pool has fewer processes than it wants, where that is known. Raises Unavailable."""
        pool, now = counts.pool, time.monotonic()
        coming = await launcher.coming(pool.name, [one.process for one in there])
        active = [one for one in there if one.process.draining_since is None]
        loads = [
            ProcessLoad(
                one.process.id,
                one.process.capacity,
                one.agents,
                now - self._empty_since.get(one.process.id, now),
                one.process.started_at.timestamp(),
            )
            for one in active
        ]
        change = change_of(
            PoolNeeds(pool, counts.unplaced, loads, coming), empty_seconds=fixed.AGENT_PROCESS_EMPTY_SECONDS
        )
        if change.start:
            await launcher.start(pool, change.start, change.wanted)
            log.info("a pool gets processes", pool=pool.name, start=change.start, wanted=change.wanted)
            self._metrics.pool_processes_started(change.start)
        if change.end:
            ending = [one.process for one in active if one.process.id in change.end]
            log.info("empty processes of a pool end", pool=pool.name, end=len(ending), wanted=change.wanted)
            if launcher.drains_first:
                await self._drain(ending)
            await launcher.end(pool, ending, change.wanted)
        return await self._hindrance(launcher, pool.name, coming)

    async def _hindrance(self, launcher: Launcher, pool: str, coming: int) -> str | None:
        if not coming:
            self._coming.pop(pool, None)
            return None
        now = time.monotonic()
        seen = self._coming.setdefault(pool, _Coming(now))
        if now - seen.since >= fixed.AGENT_START_SECONDS and now >= seen.ask_at:
            seen.ask_at = now + fixed.AGENT_SHORTAGE_SECONDS
            seen.found = await launcher.hindrance(pool)
        return seen.found

    async def _drain(self, processes: Sequence[PoolProcess]) -> None:
        for one in processes:
            with suppress(NotFound):
                await self._resources.store.agent_processes.drain(one.id)
            await self._resources.agent_registry.ring(one.pool, one.id, DRAIN)

    def _note_empty(self, there: Iterable[Occupancy]) -> None:
        now, empty = time.monotonic(), {one.process.id for one in there if not one.agents}
        self._empty_since = {process_id: self._empty_since.get(process_id, now) for process_id in empty}
