"""The events of one running run, on their way to the watchers and to the database.

A run's worker numbers its events itself: it is the only one who may. A state that belongs together with its events (a
step's result, a run's end) is written by `record`, in one transaction, and published only then. Such events get their
numbers when they are written: where the transaction is refused (no budget, decided meanwhile), they were never
published, and no number is missing. `worker.run.event_writer` has the loops that publish and store.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from backplane.domain.events import Event, EventType, encode
from backplane.logs.room import ENTRY_BYTES
from backplane.process.retrying import log_unavailable, until_available
from backplane.store import AddEvents, RunTransaction, RunWrite, Store
from worker.run.redaction import Redactor
from worker.run.send_buffer import Kept, count_until, size_of

UNPUBLISHED_MAX = 10_000
"""How many events of one run may wait to be published. Older ones are left to the database, where watchers find
them."""
UNPUBLISHED_BYTES = 4 * 1024 * 1024
"""The same in characters."""
DROP_BYTES = 64 * 1024
"""When a run has published nothing since, and Redis still keeps so much of it that is stored by now, Redis is asked to
drop that."""


Write = Callable[[RunTransaction], None]
"""Notes what is to be written."""
NewEvent = tuple[EventType, Mapping[str, Any]]
"""An event that has no number yet."""


class Publisher(Protocol):
    """What serves the events of all runs of the process (`worker.run.event_writer`)."""

    store: Store

    def wake(self, *, can_wait: bool) -> None:
        """There are events to publish and to store."""

    def publish_again(self) -> None:
        """More was stored, so more may be published."""

    def show(self, event: Event) -> None:
        """Publish an event that is live only."""

    def show_nothing(self, run_id: str) -> None:
        """Drop the run's live event that is not published yet."""

    def keeps(self, run: "RunEvents", last_id: int, size: int) -> None:
        """Redis keeps so many bytes more of the run's events, up to this number."""


class RunEvents:
    """The events of one running run. `superseded` is called once when another worker is found to have the run,
    `not_stored` when the database refuses its events for good. All output of the run passes here: the secrets that its
    `redactor` knows are taken out of events and of what is written with them."""

    def __init__(
        self,
        writer: Publisher,
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
        """Until this time of the loop's clock, events are stored before they are published."""
        self.is_open = True
        self.unpublished: list[Event] = []
        self.unpublished_bytes = 0
        self.unsaved: list[Event] = []
        self.saving = asyncio.Lock()
        self.all_published = asyncio.Event()
        self._writer = writer
        self._deferred: list[RunWrite] = []
        self._held_back: list[tuple[datetime, NewEvent]] = []
        self._holds_back = False
        """What is emitted waits for the next `record`."""
        self._is_recording = False
        """What is emitted waits for the end of the transaction, so that nothing else is numbered meanwhile."""
        self._last_id = last_id
        self._log_unavailable = log_unavailable("database away, trying again", run=run_id)

    def emit(self, type: EventType, data: Mapping[str, Any]) -> None:
        now = datetime.now(UTC)
        if self._holds_back or self._is_recording:
            self._held_back.append((now, (type, data)))
            return
        [event] = self._numbered([(now, (type, data))])
        self._last_id = event.id
        self.unsaved.append(event)
        self._to_the_wire([event], can_wait=type is EventType.LOG)

    def show(self, type: EventType, data: Mapping[str, Any]) -> None:
        """Publish an event that is live only. One that was not published yet gives way to it."""
        self._writer.show(encode(self.run_id, 0, type, self.redactor.value(data)))

    def show_nothing(self) -> None:
        """Drop the live event that is not published yet."""
        self._writer.show_nothing(self.run_id)

    @property
    def last_id(self) -> int:
        return self._last_id

    def _numbered(self, new: Sequence[tuple[datetime, NewEvent]]) -> list[Event]:
        """The new events with the numbers that come next, which are used up only when `_last_id` is set. Raises
        TypeError or ValueError for what JSON cannot hold."""
        return [
            encode(self.run_id, number, type, self.redactor.value(data), at)
            for number, (at, (type, data)) in enumerate(new, start=self._last_id + 1)
        ]

    def _to_the_wire(self, events: Sequence[Event], *, can_wait: bool = False) -> None:
        if not events:
            return
        self.unpublished.extend(events)
        self.unpublished_bytes += sum([len(event.line) for event in events])
        if len(self.unpublished) > UNPUBLISHED_MAX:
            self._forget_unpublished(len(self.unpublished) - UNPUBLISHED_MAX // 2)
        while self.unpublished_bytes > UNPUBLISHED_BYTES and len(self.unpublished) > 1:
            self._forget_unpublished(len(self.unpublished) // 2)
        self.all_published.clear()
        self._writer.wake(can_wait=can_wait)

    def _forget_unpublished(self, count: int) -> None:
        self.unpublished_bytes -= sum([len(event.line) for event in self.unpublished[:count]])
        del self.unpublished[:count]

    def published_until(self, last_id: int) -> None:
        # The list may have been cut at its beginning meanwhile.
        self._forget_unpublished(count_until(self.unpublished, last_id))

    def stored_until(self, last_id: int) -> None:
        self.stored_id = last_id
        self.kept.stored(last_id)
        if self.unpublished or self.kept.stored_bytes >= DROP_BYTES:
            self._writer.publish_again()

    def hold_back(self) -> None:
        """Publish what is emitted from here on only when the next `record` has committed it: no crash can undo a state
        that watchers saw."""
        self._holds_back = True

    def skip_numbers(self, count: int, reason: str) -> None:
        """Leave out numbers that watchers may have seen with events that are lost, and publish a gap."""
        after = self._last_id
        self._last_id += count
        self.emit(EventType.GAP, {"after": after, "before": self._last_id + 1, "reason": reason})

    def continue_after(self, published: Sequence[Event]) -> None:
        """Store these, which Redis keeps and the watchers have seen, and number on from the last of them."""
        self._last_id = published[-1].id
        self.unsaved.extend(published)
        self._writer.keeps(self, published[-1].id, sum([size_of(event) + ENTRY_BYTES for event in published]))

    async def forget_unsaved(self, reason: str) -> None:
        """Drop everything that is not stored yet, for the database refuses it; a `gap` says which events those were."""
        async with self.saving:
            after = self.unsaved[0].id - 1 if self.unsaved else self._last_id
            self.unsaved, self._deferred, self._held_back, self._holds_back = [], [], [], False
            self.is_refused = False
            while self.unpublished and self.unpublished[-1].id > after:
                self.unpublished_bytes -= len(self.unpublished.pop().line)
            if after < self._last_id:
                self.emit(EventType.GAP, {"after": after, "before": self._last_id + 1, "reason": reason})

    def defer(self, write: Write) -> None:
        """Let this be written with the next `record`, which must follow at once: nothing may be done in between. Events
        that are emitted meanwhile wait for it."""
        self.hold_back()
        self._deferred += self._writes(write)

    async def record(self, *writes: Write, publish: Sequence[NewEvent] = ()) -> None:
        """Write one transaction: the events so far, the deferred writes, these writes, and the events `publish`, which
        are published when it is committed. Waits while the database is away. Steps that run at once may each call it.

        Raises Superseded when the run is no longer running in this generation, and whatever a write raises to refuse
        the transaction: then nothing is written, `publish` is forgotten, no number is used up, and the other events and
        writes are left for the next `record`.
        """
        now = datetime.now(UTC)
        new = self._writes(*writes)
        async with self.saving:
            published = self._numbered([*self._held_back, *((now, event) for event in publish)])
            last_id = self._last_id + len(published)
            events, deferred, held_back = self.unsaved, self._deferred, self._held_back
            self.unsaved, self._deferred, self._held_back = [], [], []
            self._holds_back, self._is_recording = False, True
            together = [AddEvents((*events, *published)), *deferred, *new]
            commit = self._writer.store.running_runs.commit
            writing = asyncio.ensure_future(
                until_available(lambda: commit(self.run_id, self.generation, together), self._log_unavailable)
            )
            try:
                cancelled = await _ended(writing)
            except asyncio.CancelledError:
                self._last_id = last_id  # what is not waited for may be committed
                raise
            self._is_recording = False
            if error := writing.exception():
                self.unsaved, self._deferred = events + self.unsaved, deferred + self._deferred
                self._held_back = held_back + self._held_back
                self._holds_back |= bool(deferred or held_back)
                self._release()
                raise cancelled or error
            self._last_id = last_id
            self.stored_until(last_id)
            self._to_the_wire(published)
            self._release()
            if cancelled:
                raise cancelled

    def _release(self) -> None:
        """Publish what was emitted during a transaction, unless the next one is to commit it."""
        if not self._holds_back and self._held_back:
            events, self._held_back = self._numbered(self._held_back), []
            self._last_id = events[-1].id
            self.unsaved.extend(events)
            self._to_the_wire(events)

    def _writes(self, *writes: Write) -> list[RunWrite]:
        if not writes:
            return []
        transaction = RunTransaction() if self.redactor.knows_nothing else RunTransaction(self.redactor.value)
        for write in writes:
            write(transaction)
        return transaction.writes


async def _ended(writing: "asyncio.Future[None]") -> asyncio.CancelledError | None:
    """Wait for the transaction. What is published depends on whether it is committed, so the first cancellation waits
    until that is known, and is returned then. A second one ends both."""
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
