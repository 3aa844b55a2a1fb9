"""The two loops that publish and store the events of all runs of this process.

One publishes events: the first after a silence at once, and then every few milliseconds what has gathered; one stores
them in the database in batches. A run with much to publish cannot hold up another: each gets a bounded share of a call,
in events and in bytes, and every run that has something to publish is in every call.

An event that is published before it is stored is kept in Redis until then, because it would be lost with this process
otherwise. What may be kept is bounded for each run, for each user and for all (`backplane.logs.room`). An event for
which there is no room waits until it is stored, some milliseconds, and is published then; so does every event while
Redis is full.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from backplane.domain.events import Event
from backplane.errors import Unavailable
from backplane.logs.base import Appended, Batch, EventLog
from backplane.logs.room import ENTRY_BYTES, NO_ROOM
from backplane.process.retrying import pauses
from backplane.process.tasks import run_together
from backplane.store import Store
from worker.run.events import DROP_BYTES, RunEvents
from worker.run.send_buffer import count_until, share, size_of

CALL_BYTES = 2 * 1024 * 1024
"""About the size of all events of a call. Each run that has events gets an equal part of it, and one event at least."""
ROOM_SECONDS = 2.0
"""How often Redis is asked how much may be kept there."""
STORE_FIRST_SECONDS = 1.0
"""How long a run's events are stored first after Redis had no room for them."""
SHOW_AGAIN_SECONDS = 1.0
"""How long to wait after Redis did not take a live event."""

log = structlog.get_logger()


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
    """The two loops. `run` them in a task for as long as there are running runs. A log line waits at most
    `gather_seconds` before it is published; other events do not wait. Both wait `flush_seconds` before they are
    stored."""

    def __init__(self, store: Store, event_log: EventLog, *, flush_seconds: float, gather_seconds: float) -> None:
        self.store = store
        self._event_log = event_log
        self._flush_seconds = flush_seconds
        self._gather_seconds = gather_seconds
        self._runs: dict[str, RunEvents] = {}
        self._to_publish = asyncio.Event()
        self._cannot_wait = asyncio.Event()
        self._to_save = asyncio.Event()
        self._shown: dict[str, Event] = {}
        """Of each run, its newest live event that is not published yet."""
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
        """Note that Redis keeps so many bytes more of the run's events, up to this number."""
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
        self._to_publish.set()
        self._to_save.set()

    def publish_again(self) -> None:
        """Publish again: more was stored, so more may be published."""
        self._to_publish.set()

    async def run(self) -> None:
        await self._look_for_room()
        await run_together(
            publish_events=self._publish_all(),
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
            log.debug("the memory use of Redis is not known", error=error.message)
            return
        if had_room and not self._room.all_bytes:
            log.warning("Redis is nearly full: events are published only after they were stored")

    async def _publish_all(self) -> None:
        waits = pauses()
        while True:
            await self._to_publish.wait()
            self._to_publish.clear()
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
                self._to_publish.set()
                continue
            for part, answer in zip(shares, answers, strict=True):
                self._published(part, answer)
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
        talking = [run for run in self._runs.values() if run.unpublished or run.kept.stored_bytes >= DROP_BYTES]
        shares, left, left_of = list[_Share](), self._room.all_bytes - self._kept_bytes, dict[str, int]()
        for run in talking:
            first = share(run.unpublished, CALL_BYTES // len(talking))
            left_of_user = left_of.get(run.user_id)
            if left_of_user is None:
                left_of_user = self._room.user_bytes - self._kept_bytes_of.get(run.user_id, 0)
            count, size = self._fitting(run, first, min(left, left_of_user))
            left, left_of[run.user_id] = left - size, left_of_user - size
            if count or run.kept.stored_bytes >= DROP_BYTES:
                batch = Batch(run.run_id, run.generation, first[:count], run.user_id, run.stored_id)
                is_cut = count < len(first)
                is_behind = not is_cut and len(run.unpublished) > count
                shares.append(_Share(run, batch, is_cut, is_behind, size, run.kept.stored_bytes))
        return shares

    def _fitting(self, run: RunEvents, events: Sequence[Event], left: int) -> tuple[int, int]:
        """How many of these events may be published now, and how many bytes of them Redis is to keep."""
        if not events or events[-1].id <= run.stored_id:
            return len(events), 0
        stored = count_until(events, run.stored_id)
        if asyncio.get_running_loop().time() < run.stores_first_until:
            return stored, 0
        left = min(left, self._room.run_bytes - run.kept.bytes)
        # Numbers have no holes but where a gap is published, which makes this too careful for a moment.
        last_id, size = run.stored_id + self._room.run_events, 0
        for count, event in enumerate(events[stored:], stored):
            with_this = size + size_of(event) + ENTRY_BYTES
            if with_this > left or event.id > last_id:
                return count, size
            size = with_this
        return len(events), size

    def _published(self, part: _Share, answer: Appended) -> None:
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
            events = events[: count_until(events, stored_id)]
        if events:
            run.published_until(events[-1].id)
        if not run.unpublished:
            run.all_published.set()
        elif not (part.is_cut or stores_first) or run.stored_id > stored_id:
            # Else it goes on when more of it is stored.
            self._to_publish.set()

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
            del run.unsaved[: count_until(run.unsaved, last_id)]
            if run.run_id in superseded:
                run.unsaved.clear()
                run.superseded()
            else:
                run.stored_until(last_id)

    async def _add(self, batches: Mapping[tuple[str, int], Sequence[Event]]) -> tuple[frozenset[str], frozenset[str]]:
        """Store the batches. Returns the runs that are fenced, and those whose events the database refuses. A refused
        batch does not hinder the others: then each is stored by itself."""
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
