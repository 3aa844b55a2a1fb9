"""One run, many watchers: what one API process delivers, to how many, how late, and what a watcher costs it.

A batch of log lines is appended to the run's log as a worker does it; every client (`bench._watchers`, processes of
their own) must get every event once, and the end. Twice each: as fast as the log takes them (`events_per_second`), and
at a steady rate (`delay`: from before the append until a client has it). Beside it, in turns: the plain way, one Redis
connection a client, and a bare StreamingResponse that writes the same bytes from memory (`bench._plain_fanout`).
"""

import asyncio
import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from agentctl.local.embedded import free_port
from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import new_run_id
from backplane.logs.base import Appended, Batch
from backplane.process.supervisor import dies_with_parent
from backplane.resources import Resources, connect
from backplane.settings import Settings
from bench._frames import BATCH, batch
from bench._platform import HOST, Platform, platform, stop
from bench._result import Goal, report
from tests.event_logs import make_known

CLIENTS = {1: 8_000, 100: 8_000, 1_000: 4_000, 5_000: 1_000}
"""And how many events each gets."""
PLAIN_EVENTS = 1_000
COMPARED_AT = 1_000
TIMES = 5
STEADY_BATCHES_PER_SECOND = {1: 50, 100: 50, 1_000: 10, 5_000: 2}
STEADY_SECONDS = 4
CLIENT_PROCESSES = 2
START_SECONDS = 30.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Target:
    """A server to watch: its port, and the path of a run's stream."""

    port: int
    pid: int
    token: str
    path: str

    def memory(self) -> int:
        """Resident, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES


class Log:
    """The run's worker, as far as its watchers see it."""

    def __init__(self, resources: Resources, run_id: str) -> None:
        self._resources = resources
        self._run_id = run_id
        self._last_id = 1

    async def lines(self, count: int) -> None:
        await self._append(batch(self._run_id, self._last_id + 1, count))

    async def end(self) -> None:
        await self._append([encode(self._run_id, self._last_id + 1, EventType.END, {"status": "completed"})])

    async def _append(self, events: list[Event]) -> None:
        self._last_id = events[-1].id
        assert await self._resources.event_log.append([Batch(self._run_id, 1, events)]) == [Appended.TAKEN]


@contextlib.contextmanager
def watching(target: Target, run_id: str, clients: int, frames: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Client processes, when all of their clients are connected."""
    started = []
    path = target.path.format(run_id=run_id, frames=frames)
    processes = min(clients, CLIENT_PROCESSES)
    for number in range(processes):
        share = clients * (number + 1) // processes - clients * number // processes
        arguments = map(str, (target.port, path, target.token, share, frames))
        command = dies_with_parent([sys.executable, "-m", "bench._watchers", *arguments])
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline() != "connected\n":
                raise RuntimeError("the watchers could not connect")
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def results(processes: list["subprocess.Popen[str]"]) -> dict[str, Any]:
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
    return {
        "complete": sum(one["complete"] for one in answers),
        "frames": sum(one["frames"] for one in answers),
        "last_at": max(one["last_at"] for one in answers),
        "p50_ms": round(max(one["delay_p50"] for one in answers) * 1000, 2),
        "p99_ms": round(max(one["delay_p99"] for one in answers) * 1000, 2),
    }


class Bench:
    def __init__(self, started: Platform, peers: subprocess.Popen[bytes], peers_port: int) -> None:
        self._started = started
        api = started.processes[0].pid
        self.api = Target(started.port, api, started.token, "/agent/logs/{run_id}/stream")
        self.plain = Target(peers_port, peers.pid, "-", "/plain/{run_id}")
        self.bare = Target(peers_port, peers.pid, "-", "/bare/{run_id}?frames={frames}")
        values = {"redis_url": started.environment["REDIS_URL"], "database_url": started.environment["DATABASE_URL"]}
        self._settings = Settings.model_validate(values)
        self._memory_before = dict.fromkeys((self.api, self.plain, self.bare), 0)
        # What is made once, at the first stream, is no watcher's.
        for target in (self.api, self.plain, self.bare):
            self.full_speed(target, 1)
            self._memory_before[target] = target.memory()

    def a_run(self) -> str:
        with contextlib.closing(self._started.connection()) as connection:
            return str(self._started.execute(connection, action="create", prompt="bench")["run_id"])

    def full_speed(self, target: Target, clients: int) -> dict[str, float]:
        frames = PLAIN_EVENTS if target is self.plain else CLIENTS[clients]
        run_id = self.a_run() if target is self.api else new_run_id()
        with watching(target, run_id, clients, frames) as processes:
            connected = target.memory()
            if target is self.bare:
                began = time.monotonic()
                self._go(run_id)
            else:
                began, connections = asyncio.run(self._all_at_once(run_id, frames))
            found = results(processes)
        values = {
            "complete": found["complete"],
            "events_per_second": round((found["frames"] - clients) / (found["last_at"] - began)),
        }
        if target is self.bare:
            return values
        for name, memory in (("kib_a_client", connected), ("kib_a_client_after", target.memory())):
            values[name] = round((memory - self._memory_before[target]) / clients / 1024, 1)
        return {**values, "redis_connections": connections}

    def steady(self, clients: int) -> dict[str, float]:
        rate = STEADY_BATCHES_PER_SECOND[clients]
        batches = rate * STEADY_SECONDS
        run_id = self.a_run()
        with watching(self.api, run_id, clients, 2 + batches * BATCH) as processes:
            asyncio.run(self._at_rate(run_id, batches, 1 / rate))
            found = results(processes)
        return {
            "complete": found["complete"],
            "events_per_second": rate * BATCH * clients,
            "p50_ms": found["p50_ms"],
            "p99_ms": found["p99_ms"],
        }

    async def _all_at_once(self, run_id: str, frames: int) -> tuple[float, int]:
        async with connect(self._settings) as resources:
            connections = len(await cast(Any, resources.redis.commands).client_list(_type="pubsub"))
            await make_known(resources.redis, run_id)
            log = Log(resources, run_id)
            began = time.monotonic()
            for first in range(2, frames, BATCH):
                await log.lines(min(BATCH, frames - first))
            await log.end()
        return began, connections

    async def _at_rate(self, run_id: str, batches: int, pause: float) -> None:
        loop = asyncio.get_running_loop()
        async with connect(self._settings) as resources:
            await make_known(resources.redis, run_id)
            log = Log(resources, run_id)
            begun = loop.time()
            for number in range(batches):
                await asyncio.sleep(begun + number * pause - loop.time())
                await log.lines(BATCH)
            await log.end()

    def _go(self, run_id: str) -> None:
        with contextlib.closing(http.client.HTTPConnection(HOST, self.bare.port)) as connection:
            connection.request("GET", f"/go/{run_id}")
            connection.getresponse().read()


def summed_up(found: list[dict[str, float]]) -> dict[str, float]:
    """Of the speed the middle one, of what must not be the worst."""
    return {
        **{name: max(one[name] for one in found) for name in found[0]},
        "events_per_second": median(one["events_per_second"] for one in found),
        "complete": min(one["complete"] for one in found),
    }


@contextlib.contextmanager
def peers(started: Platform) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench._plain_fanout:app", "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(
        dies_with_parent([*command, "--no-access-log", "--log-level", "error"]), env=started.environment
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with contextlib.closing(http.client.HTTPConnection(HOST, port)) as connection:
                    connection.connect()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield process, port
    finally:
        stop(process)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    values: dict[str, Any] = {}
    with platform("sqlite", workers=0) as started, peers(started) as (process, port):
        bench = Bench(started, process, port)
        for clients in CLIENTS:
            if clients == COMPARED_AT:
                found = [
                    [bench.full_speed(target, clients) for target in (bench.api, bench.plain, bench.bare)]
                    for _ in range(TIMES)
                ]
                api, plain, bare = (summed_up([one[at] for one in found]) for at in range(3))
                values["plain"], values["bare"] = plain, bare
            else:
                api = summed_up([bench.full_speed(bench.api, clients) for _ in range(1 if clients > 1_000 else 3)])
            values[str(clients)] = {**api, "steady": bench.steady(clients)}
    api = values[str(COMPARED_AT)]
    most = values[str(max(CLIENTS))]
    missed = sum(
        clients - min(values[str(clients)]["complete"], values[str(clients)]["steady"]["complete"])
        for clients in CLIENTS
    )
    goals = [
        Goal(
            f"{COMPARED_AT} clients: events/s to one Redis connection a client",
            round(api["events_per_second"] / plain["events_per_second"], 2),
            5,
            at_least=True,
        ),
        Goal(
            f"{COMPARED_AT} clients: events/s to a bare StreamingResponse",
            round(api["events_per_second"] / bare["events_per_second"], 2),
            0.8,
            at_least=True,
        ),
        Goal("Redis connections that listen", max(values[str(clients)]["redis_connections"] for clients in CLIENTS), 1),
        Goal(f"{COMPARED_AT} clients: KiB of memory a client", api["kib_a_client"], 64),
        Goal(f"{max(CLIENTS)} clients: KiB of memory a client", most["kib_a_client"], 64),
        Goal("clients that missed an event, or the end", missed, 0),
    ]
    report("fanout", values, goals)


if __name__ == "__main__":
    main()
