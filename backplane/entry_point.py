"""What every process does around its work: settings, its own log, one event loop, and signals that ask it to end.

A first SIGTERM or SIGINT asks; a second one ends the process at once, and then its leases end. When its work is over,
so is the process: threads that a role or a handler has left behind would keep it for as long as they like.
"""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import uvloop

from backplane.configuration import ensure_utf8, log_misspelt, read_settings
from backplane.errors import InvalidInput, PlatformError
from backplane.process import log as process_log
from backplane.process import log_stream
from backplane.process.loop_watchdog import watched
from backplane.process.supervisor import keep_descriptors_from_children
from backplane.settings import Settings

T = TypeVar("T")

THREADS_SECONDS = 5.0
"""How long threads may take to end when the work of the process is over."""

log = structlog.get_logger()


def settings_at_start() -> Settings | None:
    """None when they cannot be used: what to do is on stderr, and the process ends with status 2."""
    log_stream.keep_standard_descriptors()
    keep_descriptors_from_children()
    try:
        ensure_utf8()
        return read_settings()
    except InvalidInput as error:
        process_log.refuse_to_start(error.message)
        return None


def run(name: str, work: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> int:
    """The exit status: 2 when the settings cannot be used, 1 when the work could not go on, each with what to do on
    stderr. `work` ends when the event is set."""
    settings = settings_at_start()
    if settings is None:
        return 2
    process_log.configure(format=settings.log_format, level=settings.log_level, process=name)
    process_log.own_this_process()
    log_misspelt(settings)
    gc.freeze()  # what is loaded by now stays, so the collector need not go through it again
    try:
        uvloop.run(_until_asked_to_end(settings, work))
    except PlatformError as error:
        process_log.say_last(error.message, as_json=settings.log_format == "json")
        return 1
    return 0


def end_at_once() -> None:
    """As `kill -9` does, from any thread: its leases end, and others take what it had."""
    os._exit(1)


async def _until_asked_to_end(settings: Settings, work: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            end_at_once()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    with watched():
        await then_end(work(settings, stop))


async def then_end(work: Awaitable[T]) -> T:
    """What the work of the process gives. The process ends soon after it, whatever threads are left."""
    status = 1
    try:
        given = await work
        status = 0
        return given
    finally:
        ending = threading.Timer(THREADS_SECONDS, _end_without_threads, [status])
        ending.daemon = True
        ending.start()


def _end_without_threads(status: int) -> None:
    left = [one.name for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    log.warning("the process ends without waiting for threads that code has left behind", threads=left)
    os._exit(status)
