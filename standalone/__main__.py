"""python -m standalone: the API, one worker and the controller in one process, on one event loop. Agents' pools get
processes of their own, as its children, while there are agents.

For machines where a second process is one too many, and for looking at a whole run in one debugger. It is the same code
under the same settings, so further workers may join from outside; what it gives up is that they scale, and crash,
apart. `agentctl up` starts this one when SINGLE_PROCESS is set.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

import uvicorn
import uvloop

from app.edge.protocol import install
from app.main import create_app
from backplane.background_access import connect_background_queue
from backplane.configuration import log_misspelt
from backplane.entry_point import settings_at_start, then_end
from backplane.errors import PlatformError
from backplane.process import log as process_log
from backplane.process.tasks import in_thread
from backplane.redis_access import rq_is_possible
from backplane.settings import Settings
from controller.jobs.task import carrying_out
from controller.jobs.worker import work_in_thread
from controller.pools.service import serve as serve_pools
from controller.service import serve as serve_controller
from worker.service import serve as serve_worker

GRACEFUL_SECONDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m standalone", description="API, worker, controller in one process.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--logs", metavar="FOLDER", help="where the logs of pools' processes go")
    arguments = parser.parse_args()
    settings = settings_at_start()
    if settings is None:
        return 2
    try:
        return uvloop.run(then_end(_run(settings, arguments)))
    except PlatformError as error:
        process_log.say_last(error.message, as_json=settings.log_format == "json")
        return 1


class _StandaloneServer(uvicorn.Server):
    """Without its own signal handling, which raises the signal again when the API has ended: before the worker has."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    """A signal ends the API; when it has ended, the others drain. One of them that fails ends the API."""
    app = create_app(settings)
    process_log.own_this_process()
    log_misspelt(settings)
    config = uvicorn.Config(app, host=arguments.host, port=arguments.port, timeout_graceful_shutdown=GRACEFUL_SECONDS)
    config.load()
    install(config, app.state.connection_limits)
    server = _StandaloneServer(config)
    process_log.take_over_server_logs()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    stop = asyncio.Event()
    if "agent_launcher" not in settings.model_fields_set:
        settings = settings.model_copy(update={"agent_launcher": "processes"})
    next_port = {"metrics_port": settings.metrics_port + 1} if settings.metrics_port else {}
    controller_settings = settings.model_copy(update=next_port)
    others = [
        asyncio.create_task(serve_worker(settings, stop), name="worker"),
        asyncio.create_task(serve_controller(controller_settings, stop), name="controller"),
    ]
    if settings.agent_launcher == "processes":
        without_metrics = settings.model_copy(update={"metrics_port": 0})
        others.append(asyncio.create_task(serve_pools(without_metrics, stop, arguments.logs), name="pools"))
    jobs_end, jobs = threading.Event(), None
    if rq_is_possible(settings):
        queue = connect_background_queue(settings)
        jobs = asyncio.create_task(
            in_thread(work_in_thread, queue, carrying_out(settings, queue), jobs_end), name="jobs"
        )
    for task in others:
        task.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve()
    finally:
        stop.set()
        jobs_end.set()
        await asyncio.wait([*others, *([jobs] if jobs else [])])
        found: list[BaseException | None] = [*(task.exception() for task in others), app.state.fault]
        # The part that found it first has ended the others, before they could find the same.
        if faults := [fault for fault in found if fault is not None]:
            raise faults[0]
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
