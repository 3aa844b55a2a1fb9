"""RQ's queue of background jobs, behind a few blocking calls.

The row in the database is the job; what is in here only wakes whoever carries it out. A piece of a job has an id of its
own, made of the job's and of its generation, so that it is in the queue once however often it is put there. RQ keeps
JSON, and nothing is unpickled.
"""

import time

from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import DuplicateJobError

from backplane.errors import Unavailable
from backplane.redis.blocking import BlockingRedis

TASK = "controller.jobs.task.carry_out"
"""For whoever looks into Redis; the worker carries out one task, whatever the name."""
WAIT_SECONDS = 60
"""A piece that nobody has taken by then is dropped, and put again by a controller."""
OLD_TIMER = "controller.tasks.remove_old_sessions"
SCHEDULER_SECONDS = 24 * 3600
"""RQ takes a scheduler for dead after two minutes."""
TASK_SECONDS = 3600
FAILED_SECONDS = 60
"""So long a piece that failed by a fault is remembered, and not put again."""


class RqQueue:
    """All calls raise Unavailable when Redis does not answer."""

    def __init__(self, connection: BlockingRedis, name: str) -> None:
        self.queue = Queue(name, connection=connection, serializer="json")

    def put(self, job_id: str, generation: int) -> bool:
        """Whether the piece that comes after this generation was not there yet."""
        try:
            self.queue.enqueue_call(
                TASK,
                args=[job_id],
                job_id=f"{job_id}-{generation}",
                unique=True,
                timeout=TASK_SECONDS,
                ttl=WAIT_SECONDS,
                result_ttl=0,
                failure_ttl=FAILED_SECONDS,
                description=job_id,
            )
        except DuplicateJobError:
            return False
        except RedisError as error:
            raise Unavailable(f"Redis does not answer: {error}", part="redis") from None
        return True

    def waiting(self) -> int:
        """Pieces that wait."""
        try:
            return int(self.queue.count)
        except RedisError as error:
            raise Unavailable(f"Redis does not answer: {error}", part="redis") from None

    def forget_old_timer(self) -> None:
        """Remove what releases before this one kept of a timer by RQ's scheduler. RQ's own names are shared by all who
        use that Redis, so only the timer's entry goes, and schedulers that have given no sign of life for a day."""
        try:
            with self.queue.connection.pipeline(transaction=False) as commands:
                commands.zrem("rq:cron_jobs", OLD_TIMER)
                commands.delete(f"rq:cron_job:{OLD_TIMER}:jobs")
                commands.zremrangebyscore("rq:cron_schedulers", "-inf", time.time() - SCHEDULER_SECONDS)
                commands.execute()
        except RedisError as error:
            raise Unavailable(f"Redis does not answer: {error}", part="redis") from None

    def close(self) -> None:
        self.queue.connection.close()
