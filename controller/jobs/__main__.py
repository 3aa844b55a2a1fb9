"""python -m controller.jobs: an ordinary RQ worker that carries out bulk actions and exports.

It forks for each piece of a job, so that what a piece has used is given back with its process. Asked to end (SIGTERM),
it lets the piece that is running end, which takes some seconds for a bulk action; a second signal ends it at once, and
another process goes on when the claim is over.
"""

import argparse
import sys
import time
from contextlib import suppress

import structlog

from backplane.background.rq import RqQueue
from backplane.background_access import connect_background_queue
from backplane.configuration import log_misspelt
from backplane.entry_point import settings_at_start
from backplane.errors import PlatformError, Unavailable
from backplane.process import log as process_log
from backplane.process.metrics import metrics_served_by_thread, process_registry
from backplane.process.retrying import pauses
from controller.jobs.metrics import JobsMetrics
from controller.jobs.task import carrying_out
from controller.jobs.worker import is_at_work, work

log = structlog.get_logger()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m controller.jobs", description="Bulk actions and exports, by RQ.")
    parser.add_argument("--check", action="store_true", help="Say by the exit code whether one works on this machine.")
    arguments = parser.parse_args()
    settings = settings_at_start()
    if settings is None:
        return 2
    process_log.configure(format=settings.log_format, level=settings.log_level, process="jobs")
    process_log.own_this_process()
    log_misspelt(settings)
    try:
        queue = connect_background_queue(settings)
    except PlatformError as error:
        process_log.say_last(error.message, as_json=settings.log_format == "json")
        return 1
    if arguments.check:
        return 0 if is_at_work(queue) else 1
    registry = process_registry()
    metrics = JobsMetrics(registry)
    with metrics_served_by_thread(registry, settings.metrics_host, settings.metrics_port) as ready:
        _until_redis_answers(queue)
        with suppress(Unavailable):
            queue.forget_old_timer()
        ready()
        log.info("jobs ready")
        work(queue, carrying_out(settings, queue), metrics)
    return 0


def _until_redis_answers(queue: RqQueue) -> None:
    waits = pauses()
    while True:
        try:
            queue.waiting()
            return
        except Unavailable as error:
            pause = next(waits)
            log.warning("waiting for a part", part="redis", error=error.message, pause=round(pause, 1))
            time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())
