"""What RQ does for a controller: `python -m controller.rq_processes scheduler` puts periodic tasks into the queue of
this machine, `… worker` carries them out.

`controller.cron` starts both, sees to it that they run, and they end with it; neither is meant to be started by hand.
The worker has one queue, because RQ takes a task from one queue without a moment in which a crash loses it.
"""

import argparse
import math
import sys
from typing import Any

import structlog
from rq import Queue, SimpleWorker
from rq.cron import CronScheduler
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from backplane.configuration import read_settings
from backplane.errors import PlatformError
from backplane.process import log as process_log
from backplane.redis.blocking import BlockingRedis
from backplane.redis.keys import Keys
from backplane.redis_access import connect_blocking_redis
from controller.exit_with_parent import end_with_parent
from controller.tasks import remove_old_sessions

TASK_SECONDS = 1800
"""How long a task may take. Where it is cut off, the next one goes on."""
FAILURES_KEPT = 10

log = structlog.get_logger()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m controller.rq_processes")
    parser.add_argument("kind", choices=["scheduler", "worker"])
    parser.add_argument("machine")
    arguments = parser.parse_args()
    settings = read_settings()
    process_log.configure(format=settings.log_format, level=settings.log_level, process=f"controller {arguments.kind}")
    process_log.own_this_process()
    end_with_parent()
    keys = Keys(settings.redis_key_prefix)
    try:
        connection = connect_blocking_redis(settings)
        if arguments.kind == "scheduler":
            schedule(connection, keys.controller_queue(arguments.machine), settings.session_check_seconds)
        else:
            forget_gone_machines(connection, keys, arguments.machine)
            work(connection, keys.controller_queue(arguments.machine))
    except PlatformError as error:
        log.error("RQ cannot run", error=error.message)
        return 1
    except Exception as error:
        # Redis has gone, for one; RQ does not wait for it. Its controller starts this process again.
        log.warning("RQ ended", error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def schedule(connection: BlockingRedis, queue: str, period_seconds: float) -> None:
    """Put each task into the queue, now and every period, until SIGTERM."""
    period = math.ceil(period_seconds)
    scheduler: Any = CronScheduler(connection)
    scheduler.register(
        remove_old_sessions,
        queue,
        interval=period,
        job_timeout=TASK_SECONDS,
        # One that nobody took is not done twice, and what is kept of the past does not pile up.
        ttl=period,
        result_ttl=period,
        failure_ttl=period * FAILURES_KEPT,
    )
    scheduler.start()


def work(connection: BlockingRedis, queue: str) -> None:
    """Carry out the tasks of one queue until SIGTERM, and then the one in hand to its end."""
    SimpleWorker([Queue(queue, connection=connection)], connection=connection).work()


def forget_gone_machines(connection: BlockingRedis, keys: Keys, own: str) -> None:
    """RQ remembers every queue there ever was; a container has a new name each time, so that would grow."""
    for queue in Queue.all(connection):
        machine = queue.name.removeprefix(keys.controller_queue(""))
        if machine in (queue.name, own) or connection.exists(keys.cron(machine)):
            continue
        queue.delete(delete_jobs=True)
        for registry in (FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry):
            connection.delete(registry(queue=queue).key)


if __name__ == "__main__":
    sys.exit(main())
