"""Whole runs through HTTP on PostgreSQL and S3: create, start, claim, one file written, the events, the end.

Clients in a process of their own each make, start and follow run after run to its end by server-sent events. CPU is
what all server processes use together: API, workers, PostgreSQL with its backends, Redis; not the clients, and not the
S3 server, which would be another machine's. How many cores each part and the whole machine kept busy tells what held
the rest up. In turns with it, on the same servers, the same flow written the plain way (`bench._plain`): as many events
a run, the same file.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from agentctl.local.embedded import free_port
from backplane.process.supervisor import dies_with_parent
from bench._contest import PEERS
from bench._platform import HOST, Platform, platform, stop
from bench._processes import cpu_seconds
from bench._result import Goal, report
from tests.servers import PostgresServer

ROOT = Path(__file__).parent.parent
CLIENTS = 32
WARM_UP = 96
RUNS = 400
PLAIN_WARM_UP = 8
PLAIN_RUNS = 60
ROUNDS = 5
PROCESSES = ((1, 1), (1, 2), (2, 2), (2, 4))
"""API processes and workers; the goals are those of the first."""
UNLIMITED = {
    "QUEUE_MAX_WAITING": "0",
    "QUEUE_MAX_WAITING_ALL": "0",
    "USER_CONCURRENCY_FREE": "0",
    "USER_CONCURRENCY_STANDARD": "0",
    "USER_CONCURRENCY_BETA": "0",
    "USER_CONCURRENCY_ADMIN": "0",
    "API_RATE_PER_SECOND": "0",
    "WORKER_CONCURRENCY": str(CLIENTS),
}
START_SECONDS = 30.0


@dataclass(frozen=True)
class Subject:
    """`parts`: the process ids of each part that is paid for."""

    port: int
    token: str
    parts: dict[str, list[int]]


@dataclass(frozen=True)
class Measured:
    runs_per_second: float
    cpu_ms: dict[str, float]
    p50_ms: float
    events: int
    clients_cpu_ms: float
    machine_cpu_ms: float

    @property
    def whole_cpu_ms(self) -> float:
        return sum(self.cpu_ms.values())

    def cores(self, cpu_ms: float) -> float:
        return cpu_ms * self.runs_per_second / 1000


def carry_out(subject: Subject, runs: int) -> Measured:
    before = {part: cpu_seconds(pids) for part, pids in subject.parts.items()}
    command = [sys.executable, "-m", "bench._clients", str(subject.port), subject.token, str(CLIENTS), str(runs)]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)
    time.sleep(0.2)  # what is done behind the last `end` is part of it
    cpu = {part: (cpu_seconds(pids) - before[part]) * 1000 / runs for part, pids in subject.parts.items()}
    return Measured(
        runs / result["seconds"],
        cpu,
        median(result["latencies"]) * 1000,
        result["events"],
        result["cpu_seconds"] * 1000 / runs,
        result["machine_seconds"] * 1000 / runs,
    )


def ours(started: Platform) -> Subject:
    api, *workers = (process.pid for process in started.processes)
    return Subject(started.port, started.token, {"api": [api], "workers": workers, **_servers(started)})


def _servers(started: Platform) -> dict[str, list[int]]:
    redis, postgres = ([server.pid] for server in started.servers if server.pid)
    return {"redis": redis, "postgres": postgres}


@contextlib.contextmanager
def plain(started: Platform) -> Iterator[Subject]:
    """The plain way, on the platform's servers, with a database of its own and as many workers: one."""
    postgres = started.servers[1]
    assert isinstance(postgres, PostgresServer)
    environment = {
        **started.environment,
        "DATABASE_URL": postgres.url(postgres.create_database()),
        "PYTHONPATH": str(ROOT),
    }
    python, port = str(PEERS / "python"), free_port()
    made = "from bench._plain import Base, engine; Base.metadata.create_all(engine)"
    subprocess.run([python, "-c", made], env=environment, check=True, cwd=ROOT)
    api = [python, "-m", "uvicorn", "bench._plain:app", "--host", HOST, "--port", str(port), "--log-level", "warning"]
    worker = [python, "-c", "from bench._plain import work; work()"]
    with contextlib.ExitStack() as stack:
        processes = []
        for command in (api, worker):
            process = subprocess.Popen(dies_with_parent(command), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
            stack.callback(stop, process)
            processes.append(process)
        _wait_for(port)
        parts = {"api": [processes[0].pid], "workers": [processes[1].pid], **_servers(started)}
        yield Subject(port, "none", parts)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port)).close()
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the plain API did not start")
        time.sleep(0.05)


def _middle(measured: Sequence[Measured]) -> dict[str, object]:
    parts = measured[0].cpu_ms
    return {
        "runs_per_second": round(median(one.runs_per_second for one in measured), 1),
        "cpu_ms_a_run": round(median(one.whole_cpu_ms for one in measured), 2),
        **{f"{part}_cpu_ms": round(median(one.cpu_ms[part] for one in measured), 2) for part in parts},
        **{f"{part}_cores": round(median(one.cores(one.cpu_ms[part]) for one in measured), 2) for part in parts},
        "clients_cores": round(median(one.cores(one.clients_cpu_ms) for one in measured), 2),
        "machine_cores": round(median(one.cores(one.machine_cpu_ms) for one in measured), 2),
        "p50_ms": round(median(one.p50_ms for one in measured), 1),
        "events_a_run": measured[0].events,
    }


def main() -> None:
    if not (PEERS / "python").exists():
        sys.exit("The peers are not installed: run `make .venv-bench/installed`.")
    scaled: dict[tuple[int, int], list[Measured]] = {}
    plainly: list[Measured] = []
    for apis, workers in PROCESSES:
        is_first = not scaled
        with contextlib.ExitStack() as stack:
            started = stack.enter_context(platform("postgres", apis=apis, workers=workers, s3=True, **UNLIMITED))
            subject = ours(started)
            carry_out(subject, WARM_UP * apis)
            peer = stack.enter_context(plain(started)) if is_first else None
            if peer:
                carry_out(peer, PLAIN_WARM_UP)
            measured = scaled[apis, workers] = []
            for _ in range(ROUNDS if is_first else ROUNDS - 2):
                measured.append(carry_out(subject, RUNS))
                if peer:
                    plainly.append(carry_out(peer, PLAIN_RUNS))
    one = scaled[PROCESSES[0]]
    rate = median(measured.runs_per_second for measured in one)
    cpu = median(measured.whole_cpu_ms for measured in one)
    plain_rate = median(measured.runs_per_second for measured in plainly)
    plain_cpu = median(measured.whole_cpu_ms for measured in plainly)
    values: dict[str, object] = {
        "clients": CLIENTS,
        "cores": os.cpu_count(),
        **{f"api_{apis}_workers_{workers}": _middle(measured) for (apis, workers), measured in scaled.items()},
        "plain": _middle(plainly),
    }
    goals = [
        Goal("CPU a run over all processes, ms", round(cpu, 2), 10.0),
        Goal("runs/s, one API and one worker process", round(rate, 1), 120.0, at_least=True),
        Goal("runs/s / the plain way's", round(rate / plain_rate, 1), 5.0, at_least=True),
        Goal("the plain way's CPU a run / ours", round(plain_cpu / cpu, 1), 5.0, at_least=True),
    ]
    report("runs", values, goals)


if __name__ == "__main__":
    main()
