"""RQ's worker as it is used here: it knows one task, whatever Redis says.

RQ imports and calls the function whose name is in Redis, with arguments that it unpickles. Whoever can write to Redis
could so run any code in this process. So names are not looked at, and what is read is JSON.
"""

import ctypes
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import structlog
from rq import Queue, SimpleWorker, Worker
from rq.job import Job
from rq.timeouts import TimerDeathPenalty
from rq.worker import WorkerStatus

from backplane.background.rq import RqQueue
from backplane.errors import Unavailable
from controller.jobs.metrics import JobsMetrics

log = structlog.get_logger()

Task = Callable[[str], None]
"""Takes the id of a job and carries out a piece of it."""

LOOK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def job_class_of(task: Task) -> type[Job]:
    class OneTask(Job):
        @property
        def func(self) -> Any:
            return task

        success_callback = failure_callback = stopped_callback = None

    return OneTask


def work(queue: RqQueue, task: Task, metrics: JobsMetrics) -> None:
    """Carry out what is in the queue until SIGTERM or SIGINT, and then the piece that is running to its end. Must be
    called in the main thread."""
    worker = _InProcess(
        [queue.queue],
        connection=queue.queue.connection,
        job_class=job_class_of(task),
        serializer="json",
        log_job_description=False,
    )
    worker.metrics = metrics
    # What a piece did is in the log anyway, and RQ has five lines about each.
    worker.work(logging_level="WARNING")


def is_at_work(queue: RqQueue) -> bool:
    """Whether a worker of this machine has given a sign of life in the last minutes. True also while Redis does not
    answer: nothing is known then, and the worker waits for it as well."""
    try:
        queue.waiting()
    except Unavailable:
        return True
    workers = Worker.all(queue=queue.queue)
    return any(worker.hostname == socket.gethostname() for worker in workers)


class _InProcess(Worker):
    metrics: JobsMetrics
    _was_killed = False

    def execute_job(self, job: Job, queue: Queue) -> None:
        started, self._was_killed = time.monotonic(), False
        super().execute_job(job, queue)
        self.metrics.piece(time.monotonic() - started, killed=self._was_killed)

    def handle_work_horse_killed(self, job: Job, retpid: int, ret_val: int, rusage: Any) -> None:
        self._was_killed = True
        cast(Any, super()).handle_work_horse_killed(job, retpid, ret_val, rusage)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """In the child. Where this process is killed, the kernel kills the piece too: it would hold the metrics' port,
        and go on without anybody who waits for it."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        super().main_work_horse(job, queue)

    def _shutdown(self) -> None:
        """Ends by an exception that nobody swallows: RQ's own is lost where the signal comes while a line is logged."""
        if self.get_state() == WorkerStatus.BUSY:
            cast(Any, super())._shutdown()
        else:
            raise SystemExit(0)


class _InThread(SimpleWorker):
    death_penalty_class = TimerDeathPenalty

    def _install_signal_handlers(self) -> None:
        """Signals are the process's own, and only its main thread may ask for them."""


def work_in_thread(queue: RqQueue, task: Task, stop: threading.Event) -> None:
    """The same in a thread of a process that has other work, without forks, until `stop` is set."""
    while not stop.is_set():
        try:
            if queue.waiting():
                worker = _InThread(
                    [queue.queue],
                    connection=queue.queue.connection,
                    job_class=job_class_of(task),
                    serializer="json",
                    log_job_description=False,
                )
                worker.work(burst=True, max_jobs=1)
                continue
        except Exception as error:
            log.warning("jobs wait for Redis", error=str(error))
        stop.wait(LOOK_SECONDS)
