"""The events of the runs that this process holds, on their way to the watchers and to the database.

A run's holder numbers its events itself: it is the only one who may. Two loops serve all runs of the process. One tells
events to the live wire: the first after a silence at once, and then every few milliseconds what has gathered; one
stores them in the database in batches. A run with much to say cannot hold up another: each gets a bounded share of a
call, in events and in bytes, and every run that has something to say is in every call.

An event that is published before it is stored is kept in Redis until then, because it would be lost with this process
otherwise. What may be kept is bounded for each run, for each user and for all (`backplane.logs.room`). An event for
which there is no room waits until it is stored, some milliseconds, and is published then; so does every event while
Redis is full.

What must not be parted from its events (a step's result, a run's end) is written by `record`, in one transaction, and
told only then. Such events get their numbers when they are written: where the transaction is refused (no budget,
decided meanwhile), they have never been, and no number is missing.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from backplane.domain.events import Event, EventType, encode
from backplane.domain.secrets import Redact
from backplane.errors import Unavailable
from backplane.logs.base import Appended, Batch, EventLog
from backplane.logs.room import ENTRY_BYTES, NO_ROOM
from backplane.process.retrying import pauses, until_available
from backplane.process.tasks import run_together
from backplane.store import RunTransaction, Store
from worker.run.redaction import Redactor

SHARE = 500
"""Events of one run in one call."""
CALL_BYTES = 2 * 1024 * 1024
"""All events of a call, about: each run that has something to say gets an equal part of it, and one event at least."""
UNTOLD_MAX = 10_000
"""Events of one run that wait for the live wire; older ones are left to the database, where watchers find them."""
UNTOLD_BYTES = 4 * 1024 * 1024
"""The same in characters."""
ROOM_SECONDS = 2.0
"""How often Redis is asked how much may be kept there."""
STORE_FIRST_SECONDS = 1.0
"""How long a run's events are stored first after Redis had no room for them."""
DROP_BYTES = 64 * 1024
"""When a run has said nothing since, but so much that is stored by now is still kept, Redis is told to drop it."""

SHOW_AGAIN_SECONDS = 1.0
"""After Redis did not take what is live only."""

Write = Callable[[RunTransaction], None]
Told = tuple[EventType, Mapping[str, Any]]
"""An event that has no number yet."""

log = structlog.get_logger()


def size_of(event: Event) -> int:
    """Bytes of its line."""
    line = event.line
    return len(line) if line.isascii() else len(line.encode())


def share(waiting: Sequence[Event], max_bytes: int) -> list[Event]:
    """The first of these that go into one call: at most `SHARE`, and no more bytes than that, but one at least."""
    if len(waiting) == 1:
        return list(waiting)
    size = 0
    for count, event in enumerate(waiting[:SHARE]):
        size += size_of(event)
        if size > max_bytes and count:
            return list(waiting[:count])
    return list(waiting[:SHARE])


def _count_until(waiting: Sequence[Event], last_id: int) -> int:
    """How many have this number or a lower one. Numbers rise."""
    if not waiting or waiting[-1].id <= last_id:
        return len(waiting)
    if waiting[0].id > last_id:
        return 0
    return bisect_right(waiting, last_id, key=lambda event: event.id)


class Kept:
    """What Redis keeps of a run, as its holder counts it: `bytes` in all, of which `stored_bytes` are in the database
    and go with the next call. `not_stored`: of each call whose events are not, the last number, and how many bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self.stored_bytes = 0
        self.not_stored: deque[tuple[int, int]] = deque()

    def add(self, last_id: int, size: int, stored_id: int) -> None:
        self.bytes += size
        if last_id > stored_id:
            self.not_stored.append((last_id, size))
        else:
            self.stored_bytes += size

    def stored(self, last_id: int) -> None:
        while self.not_stored and self.not_stored[0][0] <= last_id:
            self.stored_bytes += self.not_stored.popleft()[1]

    def dropped(self, size: int) -> None:
        self.bytes -= size
        self.stored_bytes -= size


class RunEvents:
    """The events of one held run. `superseded` is called once when the run is found to be in newer hands, `not_stored`
    when the database refuses its events for good. All that the run says comes this way: what its `redactor` knows is
    taken out of events and of what is written with them."""

    def __init__(
        self,
        writer: "EventWriter",
        run_id: str,
        user_id: str,
        generation: int,
        last_id: int,
        superseded: Callable[[], None],
        not_stored: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.user_id = user_id
        self.generation = generation
        self.superseded = superseded
        self.redactor = Redactor()
        self.not_stored = not_stored
        self.is_refused = False
        """The database refuses its events: they are not offered again by themselves."""
        self.stored_id = last_id
        """The database has all events up to this number."""
        self.kept = Kept()
        self.stores_first_until = 0.0
        """By the loop's clock."""
        self.is_open = True
        self.untold: list[Event] = []
        self.untold_bytes = 0
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

    def show(self, type: EventType, data: Mapping[str, Any]) -> None:
        """Publish an event that is live only. One that was not published yet gives way to it."""
        self._writer.show(encode(self.run_id, 0, type, self.redactor.value(data)))

    def show_nothing(self) -> None:
        """What is not published yet holds no more."""
        self._writer.show_nothing(self.run_id)

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
        self.untold_bytes += sum([len(event.line) for event in events])
        if len(self.untold) > UNTOLD_MAX:
            self._forget_untold(len(self.untold) - UNTOLD_MAX // 2)
        while self.untold_bytes > UNTOLD_BYTES and len(self.untold) > 1:
            self._forget_untold(len(self.untold) // 2)
        self.told.clear()
        self._writer.wake(can_wait=can_wait)

    def _forget_untold(self, count: int) -> None:
        self.untold_bytes -= sum([len(event.line) for event in self.untold[:count]])
        del self.untold[:count]

    def told_until(self, last_id: int) -> None:
        # The list may have been cut at its beginning meanwhile.
        self._forget_untold(_count_until(self.untold, last_id))

    def stored_until(self, last_id: int) -> None:
        self.stored_id = last_id
        self.kept.stored(last_id)
        if self.untold or self.kept.stored_bytes >= DROP_BYTES:
            self._writer.tell_again()

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
        """Store these, which Redis keeps and the watchers have seen, and number on from the last of them."""
        self._last_id = told[-1].id
        self.unsaved.extend(told)
        self._writer.keeps(self, told[-1].id, sum([size_of(event) + ENTRY_BYTES for event in told]))

    async def forget_unsaved(self, reason: str) -> None:
        """Drop everything that is not stored yet, for the database refuses it; a `gap` says which events those were."""
        async with self.saving:
            after = self.unsaved[0].id - 1 if self.unsaved else self._last_id
            self.unsaved, self._deferred, self._held_back, self._holds = [], [], [], 0
            self.is_refused = False
            while self.untold and self.untold[-1].id > after:
                self.untold_bytes -= len(self.untold.pop().line)
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

            def write(held: RunTransaction) -> None:
                held.add_events(events + told)
                for part in (*deferred, *writes):
                    part(held)

            store = self._writer.store.running_runs
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
            self.stored_until(self._last_id)
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


@dataclass(slots=True)
class _Share:
    """A run's part of a call. `is_cut`: what follows has to be stored first. `kept`, `dropped`: bytes that Redis keeps
    of these events, and drops."""

    run: RunEvents
    batch: Batch
    is_cut: bool
    is_behind: bool
    kept: int
    dropped: int


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
        self._shown: dict[str, Event] = {}
        """The newest event of a run that is live only, and not published yet."""
        self._to_show = asyncio.Event()
        self._room = NO_ROOM
        self._kept_bytes = 0
        self._kept_bytes_of: dict[str, int] = {}
        """By user."""

    def open(
        self,
        run_id: str,
        user_id: str,
        generation: int,
        last_id: int,
        superseded: Callable[[], None],
        not_stored: Callable[[], None] = lambda: None,
    ) -> RunEvents:
        events = RunEvents(self, run_id, user_id, generation, last_id, superseded, not_stored)
        self._runs[run_id] = events
        return events

    def close(self, events: RunEvents) -> None:
        if self._runs.get(events.run_id) is events:
            del self._runs[events.run_id]
        if events.is_open:
            events.is_open = False
            self._count(events, -events.kept.bytes)
            self.show_nothing(events.run_id)

    def show(self, event: Event) -> None:
        self._shown[event.run_id] = event
        self._to_show.set()

    def show_nothing(self, run_id: str) -> None:
        self._shown.pop(run_id, None)

    def keeps(self, run: RunEvents, last_id: int, size: int) -> None:
        """Redis keeps so many bytes more of the run's events, up to this number."""
        run.kept.add(last_id, size, run.stored_id)
        self._count(run, size)

    def _drops(self, run: RunEvents, size: int) -> None:
        run.kept.dropped(size)
        self._count(run, -size)

    def _count(self, run: RunEvents, size: int) -> None:
        self._kept_bytes += size
        of_user = self._kept_bytes_of.get(run.user_id, 0) + size
        if of_user:
            self._kept_bytes_of[run.user_id] = of_user
        else:
            self._kept_bytes_of.pop(run.user_id, None)

    def wake(self, *, can_wait: bool) -> None:
        if not can_wait:
            self._cannot_wait.set()
        self._to_tell.set()
        self._to_save.set()

    def tell_again(self) -> None:
        """More was stored, so more may be published."""
        self._to_tell.set()

    async def run(self) -> None:
        await self._look_for_room()
        await run_together(
            tell_events=self._tell_all(),
            save_events=self._save_all(),
            show_events=self._show_all(),
            look_for_room=self._keep_looking_for_room(),
        )

    async def _keep_looking_for_room(self) -> None:
        while True:
            await asyncio.sleep(ROOM_SECONDS)
            await self._look_for_room()

    async def _look_for_room(self) -> None:
        had_room = self._room.all_bytes > 0
        try:
            self._room = await self._event_log.room()
        except Unavailable as error:
            # Kept as it was: while Redis is away nothing is kept anyway.
            log.debug("how full Redis is cannot be told", error=error.message)
            return
        if had_room and not self._room.all_bytes:
            log.warning("Redis is nearly full: events are published only after they were stored")

    async def _tell_all(self) -> None:
        waits = pauses()
        while True:
            await self._to_tell.wait()
            self._to_tell.clear()
            self._cannot_wait.clear()
            shares = self._shares()
            if not shares:
                continue
            try:
                answers = await self._event_log.append([part.batch for part in shares])
                waits = pauses()
            except Unavailable as error:
                pause = next(waits)
                log.warning("live events are late", error=error.message, pause=round(pause, 1))
                await asyncio.sleep(pause)
                self._to_tell.set()
                continue
            for part, answer in zip(shares, answers, strict=True):
                self._told(part, answer)
            if not any(part.is_behind for part in shares):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._gather_seconds):
                        await self._cannot_wait.wait()

    async def _show_all(self) -> None:
        while True:
            await self._to_show.wait()
            self._to_show.clear()
            shown, self._shown = self._shown, {}
            try:
                await self._event_log.show(list(shown.values()))
            except Unavailable as error:
                # Soon there is something newer to show.
                log.debug("what is live only is not shown", error=error.message)
                await asyncio.sleep(SHOW_AGAIN_SECONDS)

    def _shares(self) -> list[_Share]:
        talking = [run for run in self._runs.values() if run.untold or run.kept.stored_bytes >= DROP_BYTES]
        shares, left, left_of = list[_Share](), self._room.all_bytes - self._kept_bytes, dict[str, int]()
        for run in talking:
            first = share(run.untold, CALL_BYTES // len(talking))
            left_of_user = left_of.get(run.user_id)
            if left_of_user is None:
                left_of_user = self._room.user_bytes - self._kept_bytes_of.get(run.user_id, 0)
            count, size = self._fitting(run, first, min(left, left_of_user))
            left, left_of[run.user_id] = left - size, left_of_user - size
            if count or run.kept.stored_bytes >= DROP_BYTES:
                batch = Batch(run.run_id, run.generation, first[:count], run.user_id, run.stored_id)
                is_cut = count < len(first)
                is_behind = not is_cut and len(run.untold) > count
                shares.append(_Share(run, batch, is_cut, is_behind, size, run.kept.stored_bytes))
        return shares

    def _fitting(self, run: RunEvents, events: Sequence[Event], left: int) -> tuple[int, int]:
        """How many of these may be published now, and how many bytes of them Redis is to keep."""
        if not events or events[-1].id <= run.stored_id:
            return len(events), 0
        stored = _count_until(events, run.stored_id)
        if asyncio.get_running_loop().time() < run.stores_first_until:
            return stored, 0
        left = min(left, self._room.run_bytes - run.kept.bytes)
        # Numbers have no holes but where a gap is told of, which makes this too careful for a moment.
        last_id, size = run.stored_id + self._room.run_events, 0
        for count, event in enumerate(events[stored:], stored):
            with_this = size + size_of(event) + ENTRY_BYTES
            if with_this > left or event.id > last_id:
                return count, size
            size = with_this
        return len(events), size

    def _told(self, part: _Share, answer: Appended) -> None:
        run, events, stored_id = part.run, part.batch.events, part.batch.stored_id
        stores_first = answer is Appended.STORE_FIRST
        if answer is Appended.REFUSED:
            run.superseded()
        elif run.is_open:
            if part.dropped:
                self._drops(run, part.dropped)
            if part.kept and not stores_first:
                self.keeps(run, events[-1].id, part.kept)
        if stores_first:
            run.stores_first_until = asyncio.get_running_loop().time() + STORE_FIRST_SECONDS
            events = events[: _count_until(events, stored_id)]
        if events:
            run.told_until(events[-1].id)
        if not run.untold:
            run.told.set()
        elif not (part.is_cut or stores_first) or run.stored_id > stored_id:
            # Else it goes on when more of it is stored.
            self._to_tell.set()

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
            last_id = batches[run.run_id, run.generation][-1].id
            del run.unsaved[: _count_until(run.unsaved, last_id)]
            if run.run_id in superseded:
                run.unsaved.clear()
                run.superseded()
            else:
                run.stored_until(last_id)

    async def _add(self, batches: Mapping[tuple[str, int], Sequence[Event]]) -> tuple[frozenset[str], frozenset[str]]:
        """The runs whose generation is over, and those whose events the database refuses. One that is refused takes no
        other with it: then each is stored by itself."""
        try:
            return await self.store.running_runs.add_events(batches), frozenset()
        except Unavailable:
            raise
        except Exception as error:
            if len(batches) == 1:
                run_ids = frozenset(run_id for run_id, _ in batches)
                log.error("the database refuses events", run=min(run_ids), error=type(error).__name__)
                return frozenset(), run_ids
        found = [await self._add({key: batch}) for key, batch in batches.items()]
        return frozenset().union(*(one for one, _ in found)), frozenset().union(*(one for _, one in found))
