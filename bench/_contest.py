"""The contestants of the queue benchmarks, each with its worker in a process of its own, all on one Redis in turns.

Redis is measured as it is run: with its append-only file synced every second, and without persistence.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from backplane.process.supervisor import dies_with_parent
from backplane.redis.keys import Keys
from bench._marks import Marks
from tests.servers import RedisServer

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-bench" / "bin"
START_SECONDS = 60.0
STALL_SECONDS = 60.0
STOP_SECONDS = 10.0
PERSISTENCE = ("aof", "none")
KEYS = Keys()


@dataclass(frozen=True)
class Contestant:
    """`worker`: the command that starts its worker. `left`: how many jobs Redis still has that are not acknowledged."""

    name: str
    module: str
    python: Path
    worker: tuple[str, ...]
    left: Callable[[Any], int]
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)


def _taskiq_stream_left(client: Any) -> int:
    """What is acknowledged stays in the stream, and Redis 6.2 does not show how much a group has not read yet."""
    newest = client.xrevrange("taskiq", count=1)
    groups = client.xinfo_groups("taskiq")
    if any(group["last-delivered-id"] != newest[0][0] for group in groups):
        return int(client.xlen("taskiq"))
    return sum(group["pending"] for group in groups)


def _ours(name: str, users: int, cap: int) -> Contestant:
    here = Path(sys.executable)
    return Contestant(
        name,
        "ours",
        here,
        (str(here), "-m", "bench._queues.ours", "work"),
        lambda client: client.zcard(KEYS.order) + client.zcard(KEYS.leases) + client.zcard(KEYS.parked),
        {"BENCH_USERS": str(users), "BENCH_CAP": str(cap)},
    )


def _bare(name: str, module: str, left: Callable[[Any], int]) -> Contestant:
    here = Path(sys.executable)
    return Contestant(name, module, here, (str(here), "-m", f"bench._queues.{module}", "work"), left)


def _taskiq(broker: str, left: Callable[[Any], int]) -> Contestant:
    worker = (str(PEERS / "taskiq"), "worker", "bench._queues.taskiq:broker", "--workers", "1")
    return Contestant(
        f"taskiq {broker}",
        "taskiq",
        PEERS / "python",
        (*worker, "--max-async-tasks", "100", "--log-level", "WARNING"),
        left,
        {"BENCH_BROKER": broker},
    )


OURS = _ours("ours", users=1, cap=0)
OURS_CAPPED = _ours("ours, caps", users=1_000, cap=10)
BARE_BATCH = _bare("bare batch claim", "bare_batch", lambda client: client.hlen("bare:jobs"))
BARE_LIST = _bare("bare list", "bare_list", lambda client: client.llen("bare:list"))
SAQ = Contestant(
    "SAQ",
    "saq",
    PEERS / "python",
    (str(PEERS / "saq"), "bench._queues.saq.settings", "--quiet"),
    lambda client: client.zcard("saq:default:incomplete"),
)
TASKIQ_LIST = _taskiq("list", lambda client: client.llen("taskiq"))
TASKIQ_STREAM = _taskiq("stream", _taskiq_stream_left)
RQ = Contestant(
    "RQ fork",
    "rq",
    PEERS / "python",
    (str(PEERS / "python"), "-m", "bench._queues.rq", "work"),
    lambda client: client.llen("rq:queue:bench") + client.zcard("rq:wip:bench"),
)


class Arena:
    """One Redis, emptied before each measurement."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self.redis: Any = redis.Redis(port=server.port)

    def drain(self, contestant: Contestant, jobs: int) -> float:
        """Jobs per second of one worker that finds a full queue: from the first job's start until none is left."""
        self.redis.flushall()
        marks = self._marks(jobs)
        self._produce(contestant, "enqueue", jobs, "batch")
        with self._worker(contestant) as worker:
            self._wait(lambda: marks.starts >= jobs and contestant.left(self.redis) == 0, marks, worker)
            ended_at = time.monotonic_ns()
        if marks.started_once != jobs:
            raise RuntimeError(f"{contestant.name}: of {jobs} jobs {marks.started_once} ran once")
        return jobs * 1e9 / (ended_at - marks.first_start)

    def enqueue(self, contestant: Contestant, jobs: int, how: str) -> float:
        """Jobs per second of one producer; `how` is one or batch."""
        self.redis.flushall()
        self._marks(1)
        seconds: float = self._produce(contestant, "enqueue", jobs, how)
        if contestant.left(self.redis) != jobs:
            raise RuntimeError(f"{contestant.name}: {contestant.left(self.redis)} of {jobs} jobs are queued")
        return jobs / seconds

    def dispatch(self, contestant: Contestant, jobs: int) -> list[float]:
        """Seconds from each enqueue to the job's first line, on a worker that has nothing else to do."""
        self.redis.flushall()
        self._marks(jobs)
        with self._worker(contestant):
            seconds: list[float] = self._produce(contestant, "dispatch", jobs)
        return seconds

    def _marks(self, jobs: int) -> Marks:
        return Marks(self._folder / "marks", jobs)

    def _environment(self, contestant: Contestant) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "BENCH_REDIS_URL": self._server.url,
            "BENCH_MARKS": str(self._folder / "marks"),
            **contestant.environment,
        }

    def _produce(self, contestant: Contestant, *arguments: object) -> Any:
        command = [str(contestant.python), "-m", f"bench._queues.{contestant.module}", *map(str, arguments)]
        finished = subprocess.run(
            dies_with_parent(command), env=self._environment(contestant), stdout=subprocess.PIPE, check=True, cwd=ROOT
        )
        return json.loads(finished.stdout)

    @contextlib.contextmanager
    def _worker(self, contestant: Contestant) -> Iterator[subprocess.Popen[bytes]]:
        with (self._folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                dies_with_parent(contestant.worker),
                env=self._environment(contestant),
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        try:
            yield worker
        except BaseException:
            print((self._folder / "worker.log").read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            _end(worker)

    def _wait(self, done: Callable[[], bool], marks: Marks, worker: subprocess.Popen[bytes]) -> None:
        starts, deadline = 0, time.monotonic() + START_SECONDS
        while not done():
            if marks.starts > starts:
                starts, deadline = marks.starts, time.monotonic() + STALL_SECONDS
            if worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker stopped after {starts} jobs")
            time.sleep(0.002)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Its children with it: RQ and taskiq have some."""
    worker.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@contextlib.contextmanager
def arena(persistence: str) -> Iterator[Arena]:
    if not (PEERS / "python").exists():
        sys.exit("The peers are not installed: run `make .venv-bench/installed`.")
    with tempfile.TemporaryDirectory(prefix="agent-bench-") as name:
        folder = Path(name)
        server = RedisServer(folder / "redis", keeps_data=persistence == "aof", appendfsync="everysec")
        server.start()
        try:
            yield Arena(server, folder)
        finally:
            server.stop()


def rounds(count: int, contestants: Sequence[Contestant]) -> Iterator[Contestant]:
    """Every contestant `count` times, in turns; each round begins with another one."""
    for number in range(count):
        first = number % len(contestants)
        yield from [*contestants[first:], *contestants[:first]]
