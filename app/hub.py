"""Who watches which run: one Redis connection an API process, however many watchers.

Each watched run has a ring of its newest frames, filled by one loop; a watcher is a cursor into it, and one wake-up
serves all. Memory is bounded by the ring, not by the watchers: a watcher that falls out of the ring reads the history
again (`app.sse`). Nothing here is history; a ring may be emptied at any moment.

A run's subscription begins before its first watcher reads the history and lasts a little longer than its last watcher.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from backplane.errors import Unavailable
from backplane.events import Event, EventType
from backplane.logs.base import EventLog, Interrupted, Subscription
from backplane.queue.base import Queue, Standing
from backplane.store import Store
from backplane.tasks import run_together

log = structlog.get_logger()

LINGER_SECONDS = 5.0
POSITION_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Frame:
    """An event as every watcher gets it; encoded once."""

    id: int
    body: bytes
    is_end: bool


def frame_of(event: Event) -> Frame:
    body = f"id: {event.id}\nevent: {event.type}\ndata: {event.line}\n\n".encode()
    return Frame(event.id, body, event.type is EventType.END)


class WatchedRun:
    """`epoch` counts how often the ring lost touch with the run: a watcher that sees it change reads the history.
    `swept`: nobody watched it for a while, so it is listened to no longer."""

    def __init__(self, run_id: str, ring_size: int) -> None:
        self.run_id = run_id
        self.epoch = 0
        self.newest = 0
        self.standing: Standing | None = None
        self.is_queued = False
        self.watchers = 0
        self.idle_since = 0.0
        self.subscribed = False
        self.swept = False
        self.lock = asyncio.Lock()
        self._ring_size = ring_size
        self._ring: list[Frame] = []
        self._changed = asyncio.Event()

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.id <= self.newest:
                continue
            if event.id != self.newest + 1:
                self._ring.clear()
            self.newest = event.id
            self._ring.append(frame_of(event))
            if event.type is EventType.STATUS:
                self.is_queued = '"status":"queued"' in event.line
        if len(self._ring) > 2 * self._ring_size:
            del self._ring[: -self._ring_size]
        self.wake()

    def reached(self, last_id: int) -> None:
        """The run is known to have come so far. Watchers that have not are sent to the history; the others stay."""
        if last_id > self.newest:
            self.newest = last_id
            self._ring.clear()
            self.wake()

    def lost_touch(self) -> None:
        self.epoch += 1
        self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def after(self, cursor: int) -> Sequence[Frame] | None:
        """The frames with an id over `cursor`, without a hole; None when the ring does not reach back so far."""
        if cursor >= self.newest:
            return ()
        if not self._ring or self._ring[0].id > cursor + 1:
            return None
        return self._ring[cursor + 1 - self._ring[0].id :]

    def next_change(self) -> asyncio.Event:
        """Is set at the next change, whoever waits for it."""
        return self._changed

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1
            self.idle_since = asyncio.get_running_loop().time()


class Hub:
    """`run` it in a task for as long as the process serves. `check_seconds`: how often the database is asked whether a
    watched run went on unheard (a worker that died between its commit and its word, with Redis emptied)."""

    def __init__(
        self,
        event_log: EventLog,
        store: Store,
        queue: Queue,
        *,
        ring_size: int,
        check_seconds: float,
        max_watchers: int,
    ) -> None:
        self._event_log = event_log
        self._store = store
        self._queue = queue
        self._ring_size = ring_size
        self._check_seconds = check_seconds
        self._max_watchers = max_watchers
        self._runs: dict[str, WatchedRun] = {}
        self._subscription: Subscription | None = None
        self._some_queued = asyncio.Event()

    async def open(self, run_id: str, *, is_queued: bool) -> WatchedRun:
        """The run, listened to from now on. Raises Unavailable when Redis is away, or watchers are too many."""
        if sum(run.watchers for run in self._runs.values()) >= self._max_watchers:
            raise Unavailable(
                f"this API process serves {self._max_watchers} streams already (STREAM_WATCHERS_MAX); try again, "
                "or ask another one",
                part="api",
            )
        if self._subscription is None:
            raise Unavailable("the API is starting", part="redis", retry_after=1)
        while True:
            run = self._runs.setdefault(run_id, WatchedRun(run_id, self._ring_size))
            async with run.lock:
                if run.swept:
                    continue
                run.idle_since = asyncio.get_running_loop().time()
                if not run.subscribed:
                    await self._subscription.add(run_id)
                    run.subscribed = True
                    run.is_queued = is_queued
            if run.is_queued:
                self._some_queued.set()
            return run

    async def run(self) -> None:
        async with self._event_log.subscription() as subscription:
            self._subscription = subscription
            await run_together(
                hear_events=self._hear(subscription),
                sweep_watched_runs=self._sweep(subscription),
                tell_positions=self._tell_positions(),
                check_watched_runs=self._check(),
            )

    async def _hear(self, subscription: Subscription) -> None:
        async for heard in subscription.listen():
            if isinstance(heard, Interrupted):
                for run in self._runs.values():
                    run.lost_touch()
            elif run_heard := self._runs.get(heard[0].run_id):
                run_heard.add(heard)
                if run_heard.is_queued:
                    self._some_queued.set()

    async def _sweep(self, subscription: Subscription) -> None:
        while True:
            await asyncio.sleep(LINGER_SECONDS)
            for run in list(self._runs.values()):
                async with run.lock:
                    if run.watchers or asyncio.get_running_loop().time() - run.idle_since < LINGER_SECONDS:
                        continue
                    try:
                        if run.subscribed:
                            await subscription.remove(run.run_id)
                    except Unavailable as error:
                        log.warning("cannot end a subscription", run=run.run_id, error=error.message)
                        continue
                    run.swept = True
                    del self._runs[run.run_id]

    async def _tell_positions(self) -> None:
        while True:
            await self._some_queued.wait()
            # A run that was opened a moment ago has no watcher yet.
            queued = [run for run in self._runs.values() if run.is_queued]
            if not queued:
                self._some_queued.clear()
            watched = [run for run in queued if run.watchers]
            try:
                standings = await self._queue.standing([run.run_id for run in watched]) if watched else []
            except Unavailable as error:
                log.warning("cannot tell positions", error=error.message)
                standings = []
            for run, standing in zip(watched, standings, strict=False):
                if standing and (run.standing is None or standing.position != run.standing.position):
                    run.standing = standing
                    run.wake()
            await asyncio.sleep(POSITION_SECONDS)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self._check_seconds)
            watched = {run_id: run for run_id, run in self._runs.items() if run.watchers}
            try:
                newest = await self._store.events.last_ids(list(watched)) if watched else {}
            except Unavailable as error:
                log.warning("cannot check watched runs", error=error.message)
                continue
            for run_id, last_id in newest.items():
                watched[run_id].reached(last_id)
