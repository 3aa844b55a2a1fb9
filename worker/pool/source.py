"""What a process of a pool takes: the messages of the agents that are placed there, each from its agent's own queue.

The process is a row with a lease, which it renews at each heartbeat; the answer says which agents it has. It looks
between heartbeats when it is called (`pool:{name}:commands`), so an agent that has just been placed here is served
within milliseconds. When its lease is over its agents are placed elsewhere, and it enters itself anew. Nothing here
keeps two processes from the same run: leases and generations of runs do.

A process that drains gives its agents up first, so that they go on elsewhere while its own steps still end.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from backplane.agents.base import DRAIN
from backplane.domain.agents import (
    Agent,
    PoolProcess,
    format_ranges,
    gaps,
    overlaps,
    parse_ranges,
    queue_of,
)
from backplane.errors import NotFound, Unavailable
from backplane.process.retrying import log_unavailable, until_available
from backplane.process.tasks import run_together
from backplane.resources import Resources
from backplane.run_actions.pushing import place_waiting
from backplane.settings import Settings, fixed
from backplane.store import Store
from worker.consumer import Consumer, Registration
from worker.context import WorkerProcess
from worker.roles.registry import RoleRegistry
from worker.service import Source

log = structlog.get_logger()


class PoolSource(Source):
    """Of the pool of this name."""

    def __init__(self, settings: Settings, pool: str) -> None:
        super().__init__(settings)
        self._pool = pool
        self._called = asyncio.Event()
        self._drains = False
        self._agents: tuple[str, ...] = ()
        self._shown: tuple[str, ...] = ()
        self._shown_at = float("-inf")
        self._capacity = 0
        self._entered: PoolProcess | None = None
        self._joined: WorkerProcess | None = None

    async def join(self, process: WorkerProcess, roles: RoleRegistry) -> Registration:
        """Enter this process in the database, and let it have agents. Raises NotFound when there is no such pool."""
        self._joined = process
        waiting = log_unavailable("waiting for a part", part="database")
        pool = await until_available(lambda: self._store.agent_pools.get(self._pool), waiting)
        self._capacity = pool.agents_per_process
        process.metrics.serves_pool(pool.name, pool.role)
        if (role := roles.get(pool.role)) is None:
            there = ", ".join(roles.names)
            log.error(
                "this process has no role of its pool's: turns fail with role_unknown", role=pool.role, roles=there
            )
        else:
            listens_to = role.role.listens_to
            await until_available(lambda: self._store.agent_events.listen(pool.role, listens_to), waiting)
        await until_available(self._register, waiting)
        await self._log_ranges()
        await self._place_waiting()
        return Registration(process.worker_id, min(self._capacity, fixed.AGENT_TURNS_AT_ONCE), ())

    async def run(self, consumer: Consumer) -> None:
        await run_together(listen=self._listen(), renew=self._renew(consumer))
        log.info("the process is to end", pool=self._pool)

    async def keep(self, store: Store) -> None:
        if await store.agent_processes.renew(self._own.id, self._settings.lease_seconds) is None:
            log.warning("the lease of this process was over while its event loop was blocked", pool=self._pool)

    async def drain(self) -> None:
        self._drains = True
        try:
            await self._store.agent_processes.drain(self._own.id)
            await self._place_waiting()
        except Unavailable as error:
            log.warning("the agents are not given up yet", part=error.part, error=error.message)

    async def leave(self) -> None:
        if self._entered is None:
            return
        try:
            await self._store.agent_processes.deregister(self._own.id)
        except Unavailable as error:
            log.warning("could not sign off; the lease will end", part=error.part, error=error.message)
        try:
            await self._resources.agent_registry.remove(self._own, self._shown)
        except Unavailable as error:
            log.warning("could not sign off", part=error.part, error=error.message)

    @property
    def _worker(self) -> WorkerProcess:
        if self._joined is None:
            raise RuntimeError("join the pool first")
        return self._joined

    @property
    def _resources(self) -> Resources:
        return self._worker.resources

    @property
    def _store(self) -> Store:
        return self._resources.store

    @property
    def _own(self) -> PoolProcess:
        if self._entered is None:
            raise RuntimeError("join the pool first")
        return self._entered

    async def _register(self) -> None:
        self._entered = await self._store.agent_processes.register(
            self._worker.worker_id,
            self._pool,
            node=socket.gethostname(),
            ranges=self._settings.agent_range or None,
            capacity=self._capacity,
            lease_seconds=self._settings.lease_seconds,
        )

    async def _listen(self) -> None:
        async with self._resources.agent_registry.commands(self._pool) as commands:
            async for command in commands:
                if command.is_for(self._own.id):
                    self._drains = self._drains or command.name == DRAIN
                    self._called.set()

    async def _renew(self, consumer: Consumer) -> None:
        """Until the process is to end."""
        while not await self._renewed(consumer):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.heartbeat_seconds):
                    await self._called.wait()
            self._called.clear()

    async def _renewed(self, consumer: Consumer) -> bool:
        """Renew the lease, and serve the agents that the process has. Returns whether the process is to end."""
        try:
            renewal = await self._store.agent_processes.renew(self._own.id, self._settings.lease_seconds)
            if renewal is None:
                log.warning("the lease of this process was over, and its agents have gone elsewhere", pool=self._pool)
                await self._register()
                await self._place_waiting()
                return await self._renewed(consumer)
            if renewal.agents != self._agents:
                self._agents = renewal.agents
                await consumer.serve([queue_of(agent) for agent in renewal.agents])
            if renewal.is_draining or self._drains:
                return True
            if await self._store.agent_processes.expire():
                await self._place_waiting()
        except NotFound:
            log.warning("the pool of this process is no more", pool=self._pool)
            return True
        except Unavailable as error:
            log.warning("the lease of this process is not renewed", part=error.part, error=error.message)
        await self._show()
        return False

    async def _place_waiting(self) -> None:
        """Let agents that have something to do and no process have one, here or elsewhere. Raises Unavailable."""
        await place_waiting(self._store, self._resources.queue, self._resources.event_log, self._pool)

    async def _show(self) -> None:
        """Write the process into the registry: when its agents have changed, now and then, and when it is not there."""
        registry = self._resources.agent_registry
        is_due = time.monotonic() - self._shown_at >= fixed.AGENT_REGISTRY_HEARTBEAT_SECONDS
        try:
            if not is_due and self._agents == self._shown and await registry.is_known(self._own.id):
                return
            agents: Sequence[Agent] = await self._store.agents.placed_in(self._own.id)
            shown = tuple(agent.id for agent in agents)
            await registry.write(self._own, agents, gone=[agent for agent in self._shown if agent not in shown])
            self._shown, self._shown_at = shown, time.monotonic()
        except Unavailable as error:
            log.warning("the registry of agents is not written", part=error.part, error=error.message)

    async def _log_ranges(self) -> None:
        """Log what does not fit together in the ranges of machines."""
        try:
            there = await self._store.agent_processes.all()
            highest = max(one.agents for one in await self._store.agent_pools.counts() if one.pool.name == self._pool)
        except Unavailable:
            return
        by_node = {one.process.node: one.process.ranges for one in there if one.process.pool == self._pool}
        named = [parse_ranges(text) for text in by_node.values() if text]
        if twice := overlaps(named):
            log.warning("AGENT_RANGE: these numbers are in ranges of several machines", numbers=format_ranges(twice))
        if named and all(by_node.values()) and (missing := gaps(named, highest)):
            log.warning("AGENT_RANGE: no machine takes these numbers", numbers=format_ranges(missing))
