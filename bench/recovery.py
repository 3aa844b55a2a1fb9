"""From `kill -9` of a worker in mid-run to the moment when the next step starts on another one, as a client receives
it.

Three workers carry out runs of one endless, repeatable shell step. The one with most runs is killed; for each of its
runs the time is taken until its watcher receives that the step has started again. Then a new worker takes its place.
Several platforms do so at the same time: some with the default lease, some with the fast one of docs/operations.md.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import redis

from backplane.process.supervisor import dies_with_parent
from backplane.redis.keys import Keys
from bench._platform import Platform, platform, stop
from bench._result import Goal, report, spread

KEYS = Keys()
WORKERS = 3
RUNS = 6
PLATFORMS = 2
FAST = {"LEASE_SECONDS": "2", "HEARTBEAT_SECONDS": "0.5"}
FAST_KILLS = 12
DEFAULT_KILLS = 4
FAST_GOAL = 3.0
DEFAULT_GOAL = 20.0
PATIENCE_SECONDS = 60.0
PLAN = {
    "steps": [
        {
            "id": "wait",
            "tool": "shell",
            "arguments": {"script": "sleep 3600"},
            "repeatable": True,
            "timeout_seconds": 3600,
        }
    ]
}


class Watched:
    """A run, and when its watcher received that a step of it started."""

    def __init__(self, started: Platform, run_id: str) -> None:
        self.run_id = run_id
        self.starts: list[float] = []
        self._stream = started.connection()
        self._stream.timeout = None
        self._stream.request("GET", f"/agent/logs/{run_id}/stream", headers=started.headers)
        self._thread = threading.Thread(target=self._listen, args=(self._stream.getresponse(),), daemon=True)
        self._thread.start()

    def _listen(self, stream: http.client.HTTPResponse) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            while line := stream.readline():
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("type") == "step" and event["data"]["status"] == "started":
                    self.starts.append(time.monotonic())

    def started_after(self, moment: float) -> float | None:
        return next((start for start in self.starts if start > moment), None)


def kill_again_and_again(kills: int, settings: dict[str, str]) -> list[float]:
    """The seconds for each run that a killed worker had."""
    settings |= {"USER_CONCURRENCY_STANDARD": "0", "WORKER_CRASH_LIMIT": "1000", "WORKER_CONCURRENCY": str(RUNS)}
    seconds = list[float]()
    with (
        platform("postgres", workers=WORKERS, apis=1, s3=False, **settings) as started,
        contextlib.ExitStack() as stack,
    ):
        workers = {process.pid: process for process in started.processes[1:]}
        with contextlib.closing(started.connection()) as control:
            watched = []
            for _ in range(RUNS):
                run_id = str(started.execute(control, action="run", prompt="bench", plan=PLAN)["run_id"])
                watched.append(Watched(started, run_id))
        _wait(lambda: all(run.starts for run in watched), "the runs did not start")
        with redis.Redis(port=started.redis.port, decode_responses=True) as client:
            for _ in range(kills):
                worker_of = {run: _worker_of(client, run) for run in watched}
                # The worker with most runs is killed, so that every kill shows much and the others have room.
                victim = max(workers, key=list(worker_of.values()).count)
                lost = [run for run, pid in worker_of.items() if pid == victim]
                seconds += _kill(workers.pop(victim), lost)
                command = dies_with_parent([sys.executable, "-m", "worker"])
                replacement = subprocess.Popen(command, env=started.environment, stderr=subprocess.DEVNULL)
                stack.callback(stop, replacement)
                workers[replacement.pid] = replacement
                _wait(lambda: _workers_known(client, set(workers)), "the new worker did not come")
    return seconds


def _kill(worker: "subprocess.Popen[bytes]", lost: Sequence[Watched]) -> list[float]:
    """Seconds until each of its runs has started again."""
    killed_at = time.monotonic()
    worker.kill()
    worker.wait()
    _wait(lambda: all(run.started_after(killed_at) for run in lost), "a lost run did not go on")
    return [(run.started_after(killed_at) or 0.0) - killed_at for run in lost]


def _worker_of(client: "redis.Redis", run: Watched) -> int:
    """Its process id, which is part of its name."""
    return int(str(client.hget(KEYS.job(run.run_id), "worker")).rsplit("-", 2)[1])


def _workers_known(client: "redis.Redis", pids: set[int]) -> bool:
    names = client.zrange(KEYS.workers, 0, -1)
    return pids <= {int(str(name).split("|")[0].rsplit("-", 2)[1]) for name in names}


def _wait(done: Callable[[], bool], or_else: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(or_else)
        time.sleep(0.01)


def main() -> None:
    with ProcessPoolExecutor(2 * PLATFORMS, mp_context=get_context("spawn")) as pool:
        fast = [pool.submit(kill_again_and_again, FAST_KILLS, FAST) for _ in range(PLATFORMS)]
        default = [pool.submit(kill_again_and_again, DEFAULT_KILLS, {}) for _ in range(PLATFORMS)]
        fast_seconds = [second for one in fast for second in one.result()]
        default_seconds = [second for one in default for second in one.result()]
    values = {
        "fast": {
            "settings": FAST,
            "kills": PLATFORMS * FAST_KILLS,
            "runs_lost": len(fast_seconds),
            **spread(fast_seconds),
        },
        "default": {"kills": PLATFORMS * DEFAULT_KILLS, "runs_lost": len(default_seconds), **spread(default_seconds)},
    }
    goals = [
        Goal("fast settings: p99, s", round(spread(fast_seconds)["p99_ms"] / 1000, 2), FAST_GOAL),
        Goal("defaults: p99, s", round(spread(default_seconds)["p99_ms"] / 1000, 2), DEFAULT_GOAL),
    ]
    report("recovery", values, goals)


if __name__ == "__main__":
    main()
