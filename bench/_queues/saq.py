"""SAQ. Its worker is its own program: `saq bench._queues.saq.settings`."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import uvloop
from saq import Queue

from bench._queues._program import body, in_turns, marks, produce, redis_url

AT_ONCE = 10
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "100"))
MARKS = marks()


async def no_op(_: Any, *, job: dict[str, Any]) -> None:
    MARKS.mark(job["job"])


def settings() -> dict[str, Any]:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    return {"queue": Queue.from_url(redis_url()), "functions": [no_op], "concurrency": CONCURRENCY}


def main() -> None:
    queue = Queue.from_url(redis_url())

    async def one(job: int) -> None:
        await queue.enqueue("no_op", job=body(job))

    async def batch(jobs: Sequence[int]) -> None:
        await in_turns(one, jobs, AT_ONCE)

    produce(one, batch, queue.connect, queue.disconnect)


if __name__ == "__main__":
    main()
