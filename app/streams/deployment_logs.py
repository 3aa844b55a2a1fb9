"""What the replicas of a deployment print, as a stream: the lines that are kept behind a cursor, then each as it comes.

The rows are the truth. Twice a second one query asks how far all deployments are that are watched here, whoever watches
them; only those that have gone on are read. So nothing has to be announced, and a line is shown within a second.
"""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import structlog

from app.streams.buffer import Frame, Span, Watched, span_of
from backplane.domain.deployments import LogLine, LogPage
from backplane.errors import NotFound, Unavailable
from backplane.store import Store

log = structlog.get_logger()

PAGE = 500
LOOK_SECONDS = 0.5
OUTAGE_SECONDS = 1.0
LINGER_SECONDS = 5.0
LARGEST = 2**63 - 2


def frame_of_line(deployment_id: str, line: LogLine) -> Frame[int]:
    data = {"replica": line.replica, "line": line.text, "left_out": line.left_out}
    return Frame(line.number, _body(deployment_id, line.number, "log", data, line.at), False)


def frames_of(deployment_id: str, cursor: int, page: LogPage) -> list[Frame[int]]:
    """The lines, and a `gap` in front where lines behind the cursor are not kept."""
    frames = [frame_of_line(deployment_id, line) for line in page.lines]
    if page.lines and page.lines[0].number > cursor + 1:
        before = page.lines[0].number
        frames.insert(0, Frame(before - 1, _gap(deployment_id, cursor, before, "not kept"), False))
    return frames


def no_such_line(deployment_id: str, asked: int, last: int) -> bytes:
    return _gap(deployment_id, last, last + 1, f"there is no line {asked} yet; the stream goes on after {last}")


async def history(store: Store, deployment_id: str, cursor: int) -> tuple[Span[int], bool]:
    """What is kept behind the cursor, at most a page, and whether there may be more. Raises Unavailable."""
    try:
        page = await store.deployments.logs_after(deployment_id, cursor, PAGE)
    except NotFound:
        return span_of([_end(deployment_id, cursor)], cursor + 1), False
    frames = frames_of(deployment_id, cursor, page)
    return span_of(frames, page.lines[-1].number if page.lines else cursor), len(page.lines) == PAGE


class WatchedLog(Watched[int]):
    """`is_over`: the deployment is gone."""

    def __init__(self, deployment_id: str, buffer_size: int, buffer_bytes: int) -> None:
        super().__init__(0, buffer_size, buffer_bytes)
        self.deployment_id = deployment_id
        self.is_over = False

    def take(self, page: LogPage) -> None:
        """A page with at least one line."""
        self.extend(frames_of(self.deployment_id, self.newest, page), page.lines[-1].number)
        self.wake()

    def finish(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.extend([_end(self.deployment_id, self.newest)], self.newest + 1)
            self.wake()


class DeploymentLogs:
    """The logs that somebody watches. `run` it in a task."""

    def __init__(self, store: Store, buffer_size: int, buffer_bytes: int) -> None:
        self._store = store
        self._buffer = (buffer_size, buffer_bytes)
        self._watched: dict[str, WatchedLog] = {}
        self._some_watched = asyncio.Event()

    async def open(self, deployment_id: str) -> WatchedLog:
        """Looked at from now on. Raises Unavailable."""
        while True:
            watched = self._watched.setdefault(deployment_id, WatchedLog(deployment_id, *self._buffer))
            async with watched.lock:
                if watched.swept:
                    continue
                watched.idle_since = asyncio.get_running_loop().time()
                if not watched.subscribed:
                    last = await self._store.deployments.last_lines([deployment_id])
                    watched.restart(last.get(deployment_id, 0))
                    watched.subscribed = True
                self._some_watched.set()
                return watched

    async def run(self) -> None:
        while True:
            await self._some_watched.wait()
            try:
                await self._look()
            except Unavailable as error:
                log.warning("the lines of deployments cannot be read", error=error.message)
                await asyncio.sleep(OUTAGE_SECONDS)
            self._sweep()
            if not self._watched:
                self._some_watched.clear()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        """Raises Unavailable."""
        looked_at = {name: watched for name, watched in self._watched.items() if watched.subscribed}
        last = await self._store.deployments.last_lines(list(looked_at)) if looked_at else {}
        for name, watched in looked_at.items():
            if name not in last:
                watched.finish()
            else:
                await self._catch_up(watched, last[name])

    async def _catch_up(self, watched: WatchedLog, last: int) -> None:
        """Raises Unavailable."""
        while last > watched.newest:
            try:
                page = await self._store.deployments.logs_after(watched.deployment_id, watched.newest, PAGE)
            except NotFound:
                watched.finish()
                return
            if not page.lines:
                return
            watched.take(page)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for name, watched in list(self._watched.items()):
            if not (watched.watchers or watched.lock.locked() or now - watched.idle_since < LINGER_SECONDS):
                watched.swept = True
                del self._watched[name]


def _end(deployment_id: str, after: int) -> Frame[int]:
    data = {"reason": "the deployment is gone"}
    return Frame(after + 1, _body(deployment_id, after + 1, "end", data, datetime.now(UTC)), True)


def _gap(deployment_id: str, after: int, before: int, reason: str) -> bytes:
    data = {"after": after, "before": before, "reason": reason}
    return _body(deployment_id, before - 1, "gap", data, datetime.now(UTC))


def _body(deployment_id: str, number: int, type: str, data: dict[str, Any], at: datetime) -> bytes:
    event = {"id": number, "deployment_id": deployment_id, "type": type, "at": at.isoformat(), "data": data}
    return f"id: {number}\nevent: {type}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
