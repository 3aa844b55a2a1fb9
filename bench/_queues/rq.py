"""RQ: a forked process a job. The worker has loaded what its jobs need, which is quicker than its own program is."""

import sys
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq import Queue, Worker

from bench._queues import rq_job
from bench._queues._program import body, nothing, produce, redis_url

NAME = "bench"


def main() -> None:
    connection = Redis.from_url(redis_url())
    queue: Any = Queue(NAME, connection=connection)
    if sys.argv[1] == "work":
        Worker([queue], connection=connection).work(logging_level="WARNING")
        return

    async def one(job: int) -> None:
        queue.enqueue(rq_job.no_op, body(job))

    async def batch(jobs: Sequence[int]) -> None:
        queue.enqueue_many([queue.prepare_data(rq_job.no_op, args=(body(job),)) for job in jobs])

    produce(one, batch, nothing, nothing)


if __name__ == "__main__":
    main()
