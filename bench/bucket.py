"""Whether a token bucket holds its rate with 50 workers on it, and what taking from it costs.

The bucket is the default one, 10 tokens a second and 100 at once. 50 workers in five processes take from it as soon as
they may, each less or more in the end than it had estimated, for 60 seconds of simulated time that pass in six. What
was used is compared with the 700 tokens that 60 seconds allow, and without the 100 that were there at first with 600.
The cost is that of takes on the same connections beside a bare INCRBY.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench._bucket_workers import BUCKET
from bench._result import Goal, report
from tests.servers import RedisServer

PROCESSES = 5
WORKERS = 50
SECONDS = 60.0
SPEED = 10.0
START_SECONDS = 3.0
"""Until all processes are there."""
ROUNDS = 5
CALLS = 20_000
OFF_GOAL = 0.01
"""How far from the rate, either way."""


def start(redis_url: str, workers: int, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench._bucket_workers", redis_url, str(workers), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answer_of(process: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = process.communicate(timeout=120)
    answer: dict[str, float] = json.loads(output)
    return answer


def tokens_used(redis_url: str) -> float:
    zero = time.monotonic() + START_SECONDS
    started = [start(redis_url, WORKERS // PROCESSES, zero, SPEED, SECONDS) for _ in range(PROCESSES)]
    return sum(answer_of(process)["used"] for process in started)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="agent-bench-") as folder, contextlib.ExitStack() as stack:
        server = RedisServer(Path(folder))
        server.start()
        stack.callback(server.stop)
        used = tokens_used(server.url)
        rates: dict[str, list[float]] = {"take": [], "incrby": []}
        for _ in range(ROUNDS):
            for kind, measured in rates.items():
                measured.append(CALLS / answer_of(start(server.url, WORKERS, kind, CALLS))["seconds"])
    allowed = BUCKET.burst + BUCKET.per_second * SECONDS
    rate = (used - BUCKET.burst) / (BUCKET.per_second * SECONDS)
    takes, bare = median(rates["take"]), median(rates["incrby"])
    values = {
        "tokens used": used,
        "tokens allowed": allowed,
        "rate to the one set": round(rate, 4),
        "takes/s": round(takes),
        "bare INCRBY/s": round(bare),
        "takes to INCRBY": round(takes / bare, 2),
    }
    goals = [
        Goal("used of what 60 s allow, off by", round(abs(used / allowed - 1), 4), OFF_GOAL),
        Goal("rate without the burst, off by", round(abs(rate - 1), 4), OFF_GOAL),
    ]
    report("bucket", values, goals)


if __name__ == "__main__":
    main()
