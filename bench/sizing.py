"""How large a platform has to be: what 10 to 1,000 agents cost in three forms, and what ends first under more load.

    python -m bench.sizing [AGENTS …] [--form sqlite|postgresql|several]

    sqlite      python -m standalone with SQLite, and the processes of the pool that it starts
    postgresql  the same with PostgreSQL
    several     two API processes, a worker, a controller and four processes of the pool, with PostgreSQL

Agents follow a role from a file and ask a simulated model, which answers after 0.1 s and computes nothing: what is
measured is the platform. `calm`: each agent gets a message a minute. `busy`: each gets one as soon as it has answered.
Then messages come at steady rates, each higher, until the 99th percentile of the time to the first event is over two
seconds, or errors come; `breaks` says at which rate, and what was used up. Whoever sends and the model run on the same
machine, and their CPU is given by itself.

`agentctl size` counts with figures of this benchmark (`agentctl.sizing.platform_size`). All of it takes a quarter of an
hour.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

import psycopg
import redis

from backplane.domain.agents import Pool
from backplane.process.supervisor import dies_with_parent
from backplane.resources import connect_store
from backplane.settings import Settings
from bench._platform import HOST, Platform, platform, stop
from bench._processes import TICKS, children, machine_seconds
from bench._result import Goal, report, spread
from bench.agents import Client, Database, at_once
from tests.servers import PostgresServer

SIZES = (10, 50, 200, 1_000)
POOL = "answering_pool"
AGENTS_A_PROCESS = 250
SEVERAL_PROCESSES = 4
SEVERAL_APIS = 2
CALM_SECONDS, BUSY_SECONDS, STEP_SECONDS = 20.0, 10.0, 6.0
STEPS = (0.5, 0.75, 1.0, 1.5)
"""Rates after `busy`, as shares of its turns a second."""
LEAST_RATE = 0.2
"""Where not one turn was over in time."""
GRACE_SECONDS, BUSY_GRACE_SECONDS = 4.0, 30.0
"""How long the last messages of a phase are waited for: of `busy` until none is left for the rates that follow."""
FIRST_EVENT_SECONDS = 2.0
SAMPLE_SECONDS = 1.0
FULL_CORE, FULL_MACHINE = 0.85, 0.9
MODEL_SLOTS = 1_000
"""More than are used."""

Figures = dict[str, Any]


@dataclass
class Watch:
    """What the processes used: CPU between two looks, and the most of everything else at any look."""

    started: Platform
    roots: Mapping[int, str]
    """Processes by what they are; their children are of the same kind, but for those of pools."""
    _most: dict[str, float] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[Figures]:
        """Filled when the block ends."""
        found: Figures = {}
        self._most.clear()
        self._ended.clear()
        before, machine, began = self._cpu(), machine_seconds(), time.perf_counter()
        looking = threading.Thread(target=self._look)
        looking.start()
        try:
            yield found
        finally:
            self._ended.set()
            looking.join()
        after, seconds = self._cpu(), time.perf_counter() - began
        cores: dict[str, float] = defaultdict(float)
        largest, kind_of_largest = 0.0, ""
        for (kind, pid), used in after.items():
            share = (used - before.get((kind, pid), used)) / seconds
            cores[kind] += share
            if share > largest:
                largest, kind_of_largest = share, kind
        found["machine_cores"] = round((machine_seconds() - machine) / seconds, 2)
        found["cores"] = {kind: round(share, 3) for kind, share in cores.items()}
        found["measured_seconds"] = round(seconds, 1)
        found["largest_process"] = {"what": kind_of_largest, "cores": round(largest, 3)}
        found |= self._most

    def _look(self) -> None:
        while True:
            for name, value in self._now().items():
                self._most[name] = max(value, self._most.get(name, 0))
            if self._ended.wait(SAMPLE_SECONDS):
                return

    def _now(self) -> dict[str, float]:
        memory: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for kind, pid in self._processes():
            memory[kind] += _memory_mib(pid, shared=kind == "postgresql")
            counts[kind] += 1
        found = {f"mib_{kind}": round(mib, 1) for kind, mib in memory.items()}
        found |= {f"processes_{kind}": float(count) for kind, count in counts.items() if kind in ("api", "pool")}
        with contextlib.closing(redis.Redis(port=self.started.redis.port)) as client:
            found["redis_used_mib"] = round(client.info("memory")["used_memory"] / 2**20, 2)
            found["redis_connections"] = client.info("clients")["connected_clients"] - 1
        for server in self.started.servers:
            if isinstance(server, PostgresServer):
                with psycopg.connect(server.url().replace("+psycopg", "")) as connection:
                    query = (
                        "SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()"
                    )
                    row = connection.execute(query).fetchone()
                    found["database_connections"] = row[0] if row else 0
        return found

    def _processes(self) -> Iterator[tuple[str, int]]:
        for pid, kind in self.roots.items():
            yield from _family(kind, pid)

    def _cpu(self) -> dict[tuple[str, int], float]:
        return {(kind, pid): _own_cpu_seconds(pid) for kind, pid in self._processes()}


def _family(kind: str, pid: int) -> Iterator[tuple[str, int]]:
    try:
        of_a_pool = b"worker.pool\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        below = children(pid)
    except OSError:
        return
    kind = "pool" if of_a_pool else kind
    yield kind, pid
    for child in below:
        yield from _family(kind, child)


def _own_cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _memory_mib(pid: int, *, shared: bool) -> float:
    """Resident. `shared`: of what processes share, this one's part."""
    try:
        if not shared:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


@contextlib.contextmanager
def simulated_model() -> Iterator[tuple[int, int]]:
    """Its port and its process's id."""
    command = dies_with_parent([sys.executable, "-m", "bench._model_server", str(MODEL_SLOTS)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


class Load:
    """The process that sends messages."""

    def __init__(self, started: Platform, agents: Sequence[str]) -> None:
        command = dies_with_parent([sys.executable, "-m", "bench._sizing_load", str(started.port)])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say({"token": started.token, "agents": agents})

    def phase(self, seconds: float, rate: float | None, grace: float = GRACE_SECONDS) -> Figures:
        self._say({"seconds": seconds, "rate": rate, "grace": grace})
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("whoever sends messages broke off")
        found: Figures = json.loads(line)
        return found

    def _say(self, what: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()


def create_pool(started: Platform, agents_per_process: int) -> None:
    async def create() -> None:
        async with connect_store(Settings(database_url=started.environment["DATABASE_URL"])) as store:
            await store.agent_pools.put(
                Pool(POOL, "answering", datetime.now(UTC), agents_per_process=agents_per_process, max_processes=4)
            )

    asyncio.run(create())


@contextlib.contextmanager
def of_form(form: str, model_port: int) -> Iterator[tuple[Platform, dict[int, str]]]:
    """The platform, and its processes by what they are."""
    server = {"kind": "openai", "url": f"http://{HOST}:{model_port}", "slots": 0, "local": False}
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(
            platform(
                "sqlite" if form == "sqlite" else "postgres",
                apis=SEVERAL_APIS if form == "several" else 0,
                ROLES_DIR=str(Path(__file__).parent / "_roles"),
                MODEL="simulated/model",
                MODEL_SERVERS=json.dumps({"simulated": server}),
                AGENT_LAUNCHER="processes",
                QUEUE_MAX_WAITING="0",
                USER_CONCURRENCY_STANDARD="0",
                WORKER_GRACE_SECONDS="1",
            )
        )
        kinds = ("api", "worker") if form == "several" else ("standalone",)
        roots = {process.pid: kind for process, kind in zip(started.processes, kinds, strict=True)}
        for server_process in started.servers:
            name = "postgresql" if isinstance(server_process, PostgresServer) else "redis"
            roots[server_process.pid or 0] = name
        if form == "several":
            for module in ("controller", "controller.pools"):
                process = subprocess.Popen(
                    dies_with_parent([sys.executable, "-m", module]), env=started.environment, stdout=subprocess.DEVNULL
                )
                stack.callback(stop, process)
                roots[process.pid] = "controller"
        yield started, roots


def measured(form: str, count: int) -> Figures:
    with contextlib.ExitStack() as stack:
        model_port, model_pid = stack.enter_context(simulated_model())
        started, roots = stack.enter_context(of_form(form, model_port))
        create_pool(started, ceil(count / SEVERAL_PROCESSES) if form == "several" else AGENTS_A_PROCESS)
        client = stack.enter_context(contextlib.closing(Client(started)))
        path = f"/api/v1/agents/pools/{POOL}/agents"
        agents = [str(client.post(path, name=f"a-{number}")["agent_id"]) for number in range(count)]
        at_once(started, [(f"/api/v1/agents/{agent}/messages", {"text": "Begin."}) for agent in agents])
        Database(started).wait_until("SELECT count(*) FROM runs WHERE finished_at IS NOT NULL", count)
        load = Load(started, agents)
        stack.callback(load.process.terminate)
        watch = Watch(started, {**roots, model_pid: "model", load.process.pid: "load"})
        with watch.measuring() as used:
            calm = load.phase(CALM_SECONDS, count / 60)
        with watch.measuring() as used_busy:
            busy = load.phase(BUSY_SECONDS, None, BUSY_GRACE_SECONDS)
        found: Figures = {"calm": phase_figures(calm) | used, "busy": phase_figures(busy) | used_busy}
        for phase in found.values():
            phase["cpu_ms_a_turn"] = cpu_ms_a_turn(phase)
        turns = found["busy"]["turns_per_second"]
        found["rates"] = []
        for share in STEPS:
            rate = max(share * turns, LEAST_RATE)
            with watch.measuring() as used_step:
                step = phase_figures(load.phase(STEP_SECONDS, rate))
            found["rates"].append({"messages_per_second": round(rate, 1), **step})
            if reason := broken(step):
                found["breaks"] = {
                    "at_messages_per_second": round(rate, 1),
                    "how": reason,
                    "used_up": used_up(used_step, count, step),
                    "cores": used_step["cores"],
                }
                break
        return found


def phase_figures(phase: Figures) -> Figures:
    found: Figures = {
        "messages": phase["sent"],
        "not_answered": phase["sent"] - phase["answered"],
        "errors": phase["errors"],
        "turns_per_second": round(phase["answered_in_time"] / phase["seconds"], 1),
    }
    for name, of_these in (("first_event", phase["first"]), ("answer", phase["last"])):
        if len(of_these) > 1:
            found[name] = spread(of_these)
    return found


def cpu_ms_a_turn(phase: Figures) -> float:
    """Of the platform with its database and Redis, with what they use when nothing is done."""
    cores = sum(share for kind, share in phase["cores"].items() if kind not in ("load", "model"))
    turns = max(int(phase["messages"]) - int(phase["not_answered"]), 1)
    return round(1000 * float(cores) * float(phase["measured_seconds"]) / turns, 1)


def broken(step: Figures) -> str:
    """Why a rate is too much; empty: it is not."""
    if step["errors"]:
        return "errors: " + ", ".join(f"{what.strip()} ({number})" for what, number in step["errors"].items())
    slowest = step.get("first_event", {}).get("p99_ms", float("inf"))
    return f"p99 to the first event {slowest:g} ms" if slowest > FIRST_EVENT_SECONDS * 1000 else ""


def used_up(used: Figures, count: int, step: Figures) -> str:
    machine, cores, largest = used["machine_cores"], os.cpu_count() or 1, used["largest_process"]
    if largest["cores"] >= FULL_CORE:
        return f"one core: a process of the kind {largest['what']}"
    if machine >= FULL_MACHINE * cores:
        others = used["cores"]["load"] + used["cores"]["model"]
        return f"the machine's {cores} cores, {others:.2f} of them by who sends messages and the model"
    return f"the {count} agents: each carries out one turn at a time, {step['turns_per_second'] / count:.1f} a second"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sizing")
    parser.add_argument("agents", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--form", choices=("sqlite", "postgresql", "several"), action="append")
    arguments = parser.parse_args()
    values: Figures = {}
    goals: list[Goal] = []
    for form in arguments.form or ("sqlite", "postgresql", "several"):
        for count in arguments.agents or SIZES:
            name = f"{form}, {count} agents"
            values[name] = found = measured(form, count)
            print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
            if "first_event" in found["calm"]:
                slowest = found["calm"]["first_event"]["p99_ms"]
                goals.append(Goal(f"{name}, a message a minute each: p99 to the first event, ms", slowest, 2_000.0))
    report("sizing", values, goals)


if __name__ == "__main__":
    main()
