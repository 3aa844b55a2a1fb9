"""The events of the runs that this process holds, on their way to the watchers and to the database.

A run's holder numbers its events itself: it is the only one who may. Two loops serve all runs of the process. One tells
events to the live wire: the first after a silence at once, and then every few milliseconds what has gathered; one
stores them in the database in batches. A run with much to say cannot hold up another: each gets a bounded share of a
call, in events and in bytes, and every run that has something to say is in every call.

What must not be parted from its events (a step's result, a run's end) is written by `record`, in one transaction, and
told only then. Such events get their numbers when they are written: where the transaction is refused (no budget,
decided meanwhile), they have never been, and no number is missing.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from backplane.errors import Unavailable
from backplane.events import Event, EventType, encode
from backplane.logs.base import Batch, EventLog
from backplane.patience import pauses, until_available
from backplane.store import Store
from backplane.store.held import HeldRun, Redact
from backplane.tasks import run_together
from worker.redaction import Redactor

SHARE = 500
"""Events of one run in one call."""
CALL_BYTES = 2 * 1024 * 1024
"""All events of a call, about: each run that has something to say gets an equal part of it, and one event at least."""
UNTOLD_MAX = 10_000
"""Events of one run that wait for the live wire; older ones are left to the database, where watchers find them."""

Write = Callable[[HeldRun], None]
Told = tuple[EventType, Mapping[str, Any]]
"""An event that has no number yet."""

log = structlog.get_logger()


def share(waiting: Sequence[Event], max_bytes: int) -> list[Event]:
    """The first of these that go into one call: at most `SHARE`, and no more bytes than that, but one at least."""
    size = 0
    for count, event in enumerate(waiting[:SHARE]):
        size += len(event.line.encode())
        if size > max_bytes and count:
            return list(waiting[:count])
    return list(waiting[:SHARE])


def _drop_until(waiting: list[Event], last_id: int) -> None:
    """In place. Numbers rise, and the list may have been cut at its beginning meanwhile."""
    del waiting[: bisect_right(waiting, last_id, key=lambda event: event.id)]


class RunEvents:
    """The events of one held run. `superseded` is called once when the run is found to be in newer hands, `not_stored`
    when the database refuses its events for good. All that the run says comes this way: what its `redactor` knows is
    taken out of events and of what is written with them."""

    def __init__(
        self,
        writer: "EventWriter",
        run_id: str,
        generation: int,
        last_id: int,
        superseded: Callable[[], None],
        not_stored: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.generation = generation
        self.superseded = superseded
        self.redactor = Redactor()
        self.not_stored = not_stored
        self.is_refused = False
        """The database refuses its events: they are not offered again by themselves."""
        self.untold: list[Event] = []
        self.unsaved: list[Event] = []
        self.saving = asyncio.Lock()
        self.told = asyncio.Event()
        self._writer = writer
        self._deferred: list[Write] = []
        self._held_back: list[tuple[datetime, Told]] = []
        self._holds = 0
        """How often it was asked to hold back since nothing was held back."""
        self._last_id = last_id

    def emit(self, type: EventType, data: Mapping[str, Any]) -> None:
        now = datetime.now(UTC)
        if self._holds:
            self._held_back.append((now, (type, data)))
            return
        [event] = self._numbered([(now, (type, data))])
        self.unsaved.append(event)
        self._to_the_wire([event], can_wait=type is EventType.LOG)

    @property
    def last_id(self) -> int:
        return self._last_id

    def _numbered(self, told: Sequence[tuple[datetime, Told]]) -> list[Event]:
        """Raises TypeError or ValueError for what JSON cannot hold; then no number is used."""
        first = self._last_id + 1
        events = [
            encode(self.run_id, number, type, self.redactor.value(data), at)
            for number, (at, (type, data)) in enumerate(told, start=first)
        ]
        self._last_id += len(told)
        return events

    def _to_the_wire(self, events: Sequence[Event], *, can_wait: bool = False) -> None:
        if not events:
            return
        self.untold.extend(events)
        if len(self.untold) > UNTOLD_MAX:
            del self.untold[: -UNTOLD_MAX // 2]
        self.told.clear()
        self._writer.wake(can_wait=can_wait)

    def hold_back(self) -> None:
        """What is emitted from here on is told when it is committed, by the next `record`: a state that watchers hear
        of is one that no crash can undo."""
        self._holds += 1

    def skip_numbers(self, count: int, reason: str) -> None:
        """Leave out numbers that watchers may have seen with events that are lost, and say so."""
        after = self._last_id
        self._last_id += count
        self.emit(EventType.GAP, {"after": after, "before": self._last_id + 1, "reason": reason})

    def continue_after(self, told: Sequence[Event]) -> None:
        """Store these, which the watchers have seen, and number on from the last of them."""
        self._last_id = told[-1].id
        self.unsaved.extend(told)

    async def forget_unsaved(self, reason: str) -> None:
        """Drop everything that is not stored yet, for the database refuses it; a `gap` says which events those were."""
        async with self.saving:
            after = self.unsaved[0].id - 1 if self.unsaved else self._last_id
            self.unsaved, self._deferred, self._held_back, self._holds = [], [], [], 0
            self.is_refused = False
            if after < self._last_id:
                self.emit(EventType.GAP, {"after": after, "before": self._last_id + 1, "reason": reason})

    def defer(self, write: Write) -> None:
        """Let this be written with the next `record`, which must follow at once: nothing may be done in between. What
        is emitted meanwhile is held back."""
        self.hold_back()
        self._deferred.append(write)

    async def record(self, *writes: Write, tell: Sequence[Told] = ()) -> None:
        """One transaction: the events so far, what was deferred, these writes, and the events `tell`, which are told
        when it is committed. Waits while the database is away. Steps that run at once may each call it.

        Raises Superseded when the run is no longer held, and what a write raises to refuse the whole: then nothing is
        written, `tell` is forgotten, and the rest is left for the next. A write may be called again, after a failure.
        """
        now = datetime.now(UTC)
        async with self.saving:
            last_id = self._last_id
            told = self._numbered([*self._held_back, *((now, event) for event in tell)])
            # Nothing else is numbered until this is over, so that a number can be taken back.
            self.hold_back()
            holds = self._holds
            events, deferred, held_back = self.unsaved, self._deferred, self._held_back
            self.unsaved, self._deferred, self._held_back = [], [], []

            def write(held: HeldRun) -> None:
                held.add_events(events + told)
                for part in (*deferred, *writes):
                    part(held)

            store = self._writer.store.held
            writing = asyncio.ensure_future(
                until_available(lambda: store.write(self.run_id, self.generation, write, self._redact()), self._tell)
            )
            cancelled = await _ended(writing)
            if error := writing.exception():
                self._last_id = last_id
                self.unsaved, self._deferred = events + self.unsaved, deferred + self._deferred
                self._held_back = held_back + self._held_back
                if not deferred and not held_back:
                    self._release(holds)
                raise cancelled or error
            self._to_the_wire(told)
            self._release(holds)
            if cancelled:
                raise cancelled

    def _release(self, holds: int) -> None:
        """Tell what was held back meanwhile, unless more was asked to be held back since."""
        if self._holds == holds:
            self._holds = 0
            events, self._held_back = self._numbered(self._held_back), []
            self.unsaved.extend(events)
            self._to_the_wire(events)

    def _redact(self) -> Redact | None:
        return None if self.redactor.knows_nothing else self.redactor.value

    def _tell(self, error: Unavailable, pause: float) -> None:
        log.warning("database away, trying again", run=self.run_id, error=error.message, pause=round(pause, 1))


async def _ended(writing: "asyncio.Future[None]") -> asyncio.CancelledError | None:
    """Wait for it. Whether a transaction is committed decides what was told, so that the first cancellation waits until
    it is known; it is the answer then. The second one ends both."""
    try:
        await asyncio.wait({writing})
    except asyncio.CancelledError as cancelled:
        try:
            await asyncio.wait({writing})
        except asyncio.CancelledError:
            writing.cancel()
            raise
        return cancelled
    return None


class EventWriter:
    """The two loops. `run` them in a task for as long as runs are held. A log line waits for at most `gather_seconds`
    before it is told, anything else for nothing; either for `flush_seconds` before it is stored."""

    def __init__(self, store: Store, event_log: EventLog, *, flush_seconds: float, gather_seconds: float) -> None:
        self.store = store
        self._event_log = event_log
        self._flush_seconds = flush_seconds
        self._gather_seconds = gather_seconds
        self._runs: dict[str, RunEvents] = {}
        self._to_tell = asyncio.Event()
        self._cannot_wait = asyncio.Event()
        self._to_save = asyncio.Event()

    def open(
        self,
        run_id: str,
        generation: int,
        last_id: int,
        superseded: Callable[[], None],
        not_stored: Callable[[], None] = lambda: None,
    ) -> RunEvents:
        events = RunEvents(self, run_id, generation, last_id, superseded, not_stored)
        self._runs[run_id] = events
        return events

    def close(self, events: RunEvents) -> None:
        if self._runs.get(events.run_id) is events:
            del self._runs[events.run_id]

    def wake(self, *, can_wait: bool) -> None:
        if not can_wait:
            self._cannot_wait.set()
        self._to_tell.set()
        self._to_save.set()

    async def run(self) -> None:
        await run_together(tell_events=self._tell_all(), save_events=self._save_all())

    async def _tell_all(self) -> None:
        waits = pauses()
        while True:
            await self._to_tell.wait()
            self._to_tell.clear()
            self._cannot_wait.clear()
            talking = [run for run in self._runs.values() if run.untold]
            if not talking:
                continue
            shares = [(run, share(run.untold, CALL_BYTES // len(talking))) for run in talking]
            behind = any(len(run.untold) > len(events) for run, events in shares)
            try:
                taken = await self._event_log.append(
                    [Batch(run.run_id, run.generation, events) for run, events in shares]
                )
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("live events are late", error=error.message, pause=round(pause, 1))
                await asyncio.sleep(pause)
                self._to_tell.set()
                continue
            for (run, events), accepted in zip(shares, taken, strict=True):
                _drop_until(run.untold, events[-1].id)
                if not accepted:
                    run.superseded()
                if run.untold:
                    self._to_tell.set()
                else:
                    run.told.set()
            if not behind:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._gather_seconds):
                        await self._cannot_wait.wait()

    async def _save_all(self) -> None:
        waits, behind = pauses(), False
        while True:
            await self._to_save.wait()
            if not behind:
                await asyncio.sleep(self._flush_seconds)
            self._to_save.clear()
            behind = False
            runs = [
                run for run in self._runs.values() if run.unsaved and not run.is_refused and not run.saving.locked()
            ]
            if not runs:
                continue
            try:
                await self._save(runs)
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("events are not in the database yet", error=error.message, pause=round(pause, 1))
                await asyncio.sleep(pause)
            behind = any(run.unsaved and not run.is_refused for run in runs)
            if behind:
                self._to_save.set()

    async def _save(self, runs: Sequence[RunEvents]) -> None:
        part = CALL_BYTES // len(runs)
        batches = {(run.run_id, run.generation): share(run.unsaved, part) for run in runs}
        for run in runs:
            await run.saving.acquire()
        try:
            superseded, refused = await self._add(batches)
        finally:
            for run in runs:
                run.saving.release()
        for run in runs:
            if run.run_id in refused:
                run.is_refused = True
                run.not_stored()
                continue
            _drop_until(run.unsaved, batches[run.run_id, run.generation][-1].id)
            if run.run_id in superseded:
                run.unsaved.clear()
                run.superseded()

    async def _add(self, batches: Mapping[tuple[str, int], Sequence[Event]]) -> tuple[frozenset[str], frozenset[str]]:
        """The runs whose generation is over, and those whose events the database refuses. One that is refused takes no
        other with it: then each is stored by itself."""
        try:
            return await self.store.held.add_events(batches), frozenset()
        except Unavailable:
            raise
        except Exception as error:
            if len(batches) == 1:
                run_ids = frozenset(run_id for run_id, _ in batches)
                log.error("the database refuses events", run=min(run_ids), error=type(error).__name__)
                return frozenset(), run_ids
        found = [await self._add({key: batch}) for key, batch in batches.items()]
        return frozenset().union(*(one for one, _ in found)), frozenset().union(*(one for _, one in found))
