"""What the programs have in common: the job, and the producer's commands."""

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

from bench._marks import Marks

JOB_BYTES = 300
BATCH = 100
GAP_SECONDS = (0.002, 0.010)
"""Between two jobs that are dispatched, at random: the worker is idle by then."""


def redis_url() -> str:
    return os.environ["BENCH_REDIS_URL"]


def marks() -> Marks:
    return Marks(Path(os.environ["BENCH_MARKS"]))


def body(job: int) -> dict[str, object]:
    """What a job carries: as JSON, JOB_BYTES long."""
    fields: dict[str, object] = {"job": job, "run_id": f"run-{job:032d}", "user": "user-0042", "prompt": ""}
    return {**fields, "prompt": "x" * (JOB_BYTES - len(json.dumps(fields)))}


def produce(
    one: Callable[[int], Awaitable[object]],
    batch: Callable[[Sequence[int]], Awaitable[object]],
    opened: Callable[[], Awaitable[object]],
    closed: Callable[[], Awaitable[object]],
) -> None:
    """`one` enqueues one job, `batch` some in the way that is quickest here; both take numbers."""
    uvloop.run(_produce(one, batch, opened, closed))


async def _produce(
    one: Callable[[int], Awaitable[object]],
    batch: Callable[[Sequence[int]], Awaitable[object]],
    opened: Callable[[], Awaitable[object]],
    closed: Callable[[], Awaitable[object]],
) -> None:
    command, jobs = sys.argv[1], range(int(sys.argv[2]))
    await opened()
    try:
        if command == "dispatch":
            print(json.dumps(await _dispatch(one, jobs)))
            return
        began = time.perf_counter()
        if sys.argv[3] == "one":
            for job in jobs:
                await one(job)
        else:
            for start in range(0, len(jobs), BATCH):
                await batch(jobs[start : start + BATCH])
        print(json.dumps(time.perf_counter() - began))
    finally:
        await closed()


async def _dispatch(one: Callable[[int], Awaitable[object]], jobs: Sequence[int]) -> list[float]:
    seen, chance, seconds = marks(), random.Random(1), list[float]()
    for job in jobs:
        called_at = time.monotonic_ns()
        await one(job)
        while not (started_at := seen.started_at(job)):  # noqa: ASYNC110 (another process sets it)
            await asyncio.sleep(0.0002)
        seconds.append((started_at - called_at) / 1e9)
        await asyncio.sleep(chance.uniform(*GAP_SECONDS))
    return seconds


async def nothing() -> None:
    """Where there is nothing to open or close."""


async def in_turns(one: Callable[[int], Awaitable[object]], jobs: Sequence[int], at_once: int) -> None:
    """For queues that cannot enqueue several at once: so many calls under way at a time."""

    async def some(mine: Sequence[int]) -> None:
        for job in mine:
            await one(job)

    await asyncio.gather(*(some(jobs[start::at_once]) for start in range(at_once)))
