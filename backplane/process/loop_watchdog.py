"""Reports what blocks an event loop, with the place in the code.

One callback that does not return stops everything that its loop serves: heartbeats, streams, timers. From inside the
loop nobody sees it. So a thread asks the loop for an answer a few times a second. Where none comes within
BLOCKED_SECONDS, it logs the stack of the loop's thread, and later how long the loop was blocked. It ends nothing: a
lease does that.

A process that was stopped, or that got no processor, is no fault of the code; when the thread itself woke up late,
nothing is logged.

Code of others that shares the loop is named to its author too: `blocks_reported` gets the line of it that blocked.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

import structlog

BLOCKED_SECONDS = 0.5
PERIOD_SECONDS = 0.25
LATE_SECONDS = 0.25
STACK_FRAMES = 30

log = structlog.get_logger()

ReportBlock = Callable[[str, float], None]
"""Called on the loop, as soon as it goes on, with the place in the code that blocked it and for how many seconds."""

_reports: MutableMapping["asyncio.Task[object]", tuple[ReportBlock, str, str]] = WeakKeyDictionary()


@contextmanager
def blocks_reported(report: ReportBlock, file: str, owner: str = "") -> Iterator[None]:
    """While the block runs, report where the current task blocks the loop. `file`: of the code whose line is to be
    named, where it is among the callers of what blocks. `owner`: whose code it is (`owner_at_work`)."""
    task = asyncio.current_task()
    assert task is not None
    _reports[task] = (report, file, owner)
    try:
        yield
    finally:
        _reports.pop(task, None)


def owner_at_work(loop: asyncio.AbstractEventLoop) -> str:
    """Whose code the loop is at, seen from another thread; empty where nobody has named it."""
    task = asyncio.current_task(loop)
    return _reports.get(task, (None, "", ""))[2] if task is not None else ""


@contextmanager
def watched(*, blocked_seconds: float = BLOCKED_SECONDS, period_seconds: float = PERIOD_SECONDS) -> Iterator[None]:
    """Watch the running event loop while the block runs."""
    watchdog = _Watchdog(asyncio.get_running_loop(), blocked_seconds, period_seconds)
    thread = threading.Thread(target=watchdog.run, name="loop watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Not waited for: it may be in the middle of a line to a slow log.
        watchdog.ended.set()


class _Watchdog:
    def __init__(self, loop: asyncio.AbstractEventLoop, blocked_seconds: float, period_seconds: float) -> None:
        self.ended = threading.Event()
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._blocked_seconds = blocked_seconds
        self._period_seconds = period_seconds

    def run(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            while not self.ended.wait(self._period_seconds):
                self._look()

    def _look(self) -> None:
        answered = threading.Event()
        asked = time.monotonic()
        self._loop.call_soon_threadsafe(answered.set)
        if answered.wait(self._blocked_seconds):
            return
        if time.monotonic() - asked > self._blocked_seconds + LATE_SECONDS:
            return
        frame = sys._current_frames().get(self._loop_thread)
        self._report(traceback.extract_stack(frame) if frame else traceback.StackSummary(), asked)
        stack = "".join(traceback.format_stack(frame, limit=STACK_FRAMES)) if frame else ""
        log.warning("the event loop is blocked", for_seconds=self._blocked_seconds, stack=stack)
        while not answered.wait(self._period_seconds):
            if self.ended.is_set():
                return
        log.warning("the event loop goes on", blocked_seconds=round(time.monotonic() - asked, 1))

    def _report(self, frames: traceback.StackSummary, asked: float) -> None:
        task = asyncio.current_task(self._loop)
        report, file, _ = _reports.get(task, (None, "", "")) if task is not None else (None, "", "")
        if report is None or not frames:
            return
        own = [frame for frame in frames if frame.filename == file] or list(frames)
        name = own[-1].filename.rpartition("/")[2]
        place = f"{name}, line {own[-1].lineno}, in {own[-1].name}: {own[-1].line}"
        # It comes before all that the blocking code lets happen next, so its run is not over yet.
        self._loop.call_soon_threadsafe(lambda: report(place, time.monotonic() - asked))
