"""taskiq on Redis, its list (loses what a worker holds when it dies) or its stream (does not), by BENCH_BROKER.

Its worker is its own program: `taskiq worker bench._queues.taskiq:broker`.
"""

import os
from collections.abc import Sequence
from typing import Any

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from bench._queues._program import body, in_turns, marks, produce, redis_url

AT_ONCE = 10
MARKS = marks()

broker: Any = {"list": ListQueueBroker, "stream": RedisStreamBroker}[os.environ["BENCH_BROKER"]](redis_url())


@broker.task(task_name="no_op")  # type: ignore[untyped-decorator]
async def no_op(job: dict[str, Any]) -> None:
    MARKS.mark(job["job"])


def main() -> None:
    async def one(job: int) -> None:
        await no_op.kiq(body(job))

    async def batch(jobs: Sequence[int]) -> None:
        await in_turns(one, jobs, AT_ONCE)

    produce(one, batch, broker.startup, broker.shutdown)


if __name__ == "__main__":
    main()
