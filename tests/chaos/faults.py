"""What goes wrong, and when: a schedule drawn from a seed, and the class that carries it out.

Faults of one lane follow one another; the lanes run side by side, so that two parts may be away at once. A fault that
lasts is over, with whatever it broke started again, when `FaultInjector.inflict` returns.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from shutil import rmtree

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos.processes import Process
from tests.chaos.proxies import S3Fault, S3Proxy, TcpProxy
from tests.servers import PostgresServer, RedisServer

LANES = {
    "processes": (
        "worker killed",
        "worker killed, redis flushed",
        "worker ended",
        "worker stopped",
        "worker's clock off",
        "api killed",
        "api ended",
    ),
    "redis": (
        "redis killed",
        "redis restarted empty",
        "redis flushed",
        "redis stopped",
        "redis paused",
        "redis cut",
        "redis refused",
        "redis delayed",
        "redis silent",
    ),
    "postgres": (
        "postgres restarted",
        "postgres crashed",
        "postgres cut",
        "postgres refused",
        "postgres delayed",
        "postgres silent",
    ),
    "s3": ("s3 500", "s3 503", "s3 500 after it was done", "s3 slow", "s3 cut"),
}
EMPTYING = frozenset({"redis restarted empty", "redis flushed", "worker killed, redis flushed"})
CLOCK_SECONDS = (-420.0, -150.0, 90.0, 300.0)
"""Minutes, and less than the quarter of an hour after which an S3 server refuses a signature."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` seconds after the beginning, for `seconds`; `target` picks one of several (a worker, a connection)."""

    at: float
    kind: str
    seconds: float = 1.0
    target: int = 0


def schedule(seed: int, seconds: float, lease_seconds: float) -> list[Fault]:
    """Every kind about equally often, in an order and at times that follow from the seed alone."""
    faults = []
    for lane, kinds in LANES.items():
        draw = random.Random(f"{seed} {lane}")
        at, left = draw.uniform(1.0, 3.0), list[str]()
        while at < seconds:
            if not left:
                left = draw.sample(kinds, len(kinds))
            kind = left.pop()
            lasts = lease_seconds * draw.uniform(1.3, 2.0) if kind == "worker stopped" else draw.uniform(0.3, 3.0)
            faults.append(Fault(at, kind, lasts, draw.randrange(1000)))
            at += lasts + draw.uniform(1.0, 5.0)
    return sorted(faults, key=lambda fault: fault.at)


@dataclass(frozen=True)
class FaultInjector:
    """What can be broken. A proxy of Redis and one of PostgreSQL for each process, in the order API, workers.

    Servers are started from `thread`, which must live as long as they shall: they end with it.
    """

    api: Process
    workers: Sequence[Process]
    redis: RedisServer
    redis_proxies: Sequence[TcpProxy]
    postgres: PostgresServer
    postgres_proxies: Sequence[TcpProxy]
    s3_proxy: S3Proxy
    thread: ThreadPoolExecutor
    done: Counter[str]

    async def inflict_all(self, faults: Sequence[Fault]) -> None:
        lane_of = {kind: lane for lane, kinds in LANES.items() for kind in kinds}
        began = asyncio.get_running_loop().time()

        async def one_lane(lane: str) -> None:
            for fault in faults:
                if lane_of[fault.kind] == lane:
                    await asyncio.sleep(max(began + fault.at - asyncio.get_running_loop().time(), 0.0))
                    await self.inflict(fault)

        async with asyncio.TaskGroup() as lanes:
            for lane in LANES:
                lanes.create_task(one_lane(lane))

    async def inflict(self, fault: Fault) -> None:
        self.done[fault.kind] += 1
        part, _, what = fault.kind.partition(" ")
        if part in ("worker", "worker's"):
            await self._worker(what, self.workers[fault.target % len(self.workers)], fault)
        elif part == "api":
            await (self.api.kill() if what == "killed" else self.api.end())
            await self.api.start()
        elif what in ("cut", "refused", "delayed", "silent"):
            await self._network(what, self._proxies(part, fault.target), fault.seconds)
        elif part == "redis":
            await self._redis(what, fault.seconds)
        elif part == "postgres":
            await self._in_thread(self.postgres.stop if what == "restarted" else self.postgres.kill)
            await self._in_thread(self.postgres.start)
        else:
            self.s3_proxy.fault = S3Fault(what)
            await asyncio.sleep(fault.seconds)
            self.s3_proxy.fault = S3Fault.NONE

    async def _worker(self, what: str, worker: Process, fault: Fault) -> None:
        if what == "stopped":
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            worker.signal(signal.SIGCONT)
            return
        await (worker.end() if what in ("ended", "clock off") else worker.kill())
        if what == "killed, redis flushed":
            with suppress(RedisError, ConnectionError):  # it may be down at this moment
                await self._in_thread(self.redis.flush)
        if what == "clock off":
            worker.set_clock(CLOCK_SECONDS[fault.target % len(CLOCK_SECONDS)])
        await worker.start()

    async def _redis(self, what: str, seconds: float) -> None:
        if what == "flushed":
            await self._in_thread(self.redis.flush)
        elif what == "paused":
            async with Redis(port=self.redis.port) as client:
                await client.client_pause(round(seconds * 1000))
            await asyncio.sleep(seconds)
        elif what == "stopped":
            assert self.redis.pid is not None
            os.kill(self.redis.pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            os.kill(self.redis.pid, signal.SIGCONT)
        else:
            await self._in_thread(self.redis.kill)
            if what == "restarted empty":
                rmtree(self.redis.folder)
            await asyncio.sleep(seconds / 2)
            await self._in_thread(self.redis.start)

    async def _network(self, what: str, proxies: Sequence[TcpProxy], seconds: float) -> None:
        for proxy in proxies:
            if what == "silent":
                proxy.silence(True)
            elif what == "delayed":
                proxy.delay_seconds = 0.15
            else:
                proxy.refuses = what == "refused"
                proxy.cut()
        if what != "cut":
            await asyncio.sleep(seconds)
        for proxy in proxies:
            proxy.refuses, proxy.delay_seconds = False, 0.0
            proxy.silence(False)

    def _proxies(self, part: str, target: int) -> Sequence[TcpProxy]:
        """Those of one process, or of all."""
        if part == "s3":
            return [self.s3_proxy]
        proxies = self.redis_proxies if part == "redis" else self.postgres_proxies
        return [*[[proxy] for proxy in proxies], proxies][target % (len(proxies) + 1)]

    async def _in_thread(self, call: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, call)
