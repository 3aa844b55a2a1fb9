"""What is done to an existing run, by its user or for its user: retry, replay, redrive, cancel.

The API does it when it is asked, a bulk action for many runs. Commit first, then push: the row is the promise. When
Redis is away at the push, a worker's reaper finds the run queued in the database and unknown to Redis, and pushes it.
What is published to watchers here is in the database already.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

import structlog

from backplane.domain.agents import AddedMessage, Agent, agent_terminated
from backplane.domain.bus import EventWait
from backplane.domain.dead_letters import no_dead_letter
from backplane.domain.events import Event
from backplane.domain.runs import DEFAULT_QUEUE, FINAL, Changed, Priority, Run, RunError, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.errors import QueueFull, StorageExceeded, TooManyWaiting, Unavailable
from backplane.limits.storage.limits import StorageLimits
from backplane.logs.base import EventLog
from backplane.queue.base import Full, Limit, Queue
from backplane.run_actions.known_queues import KnownQueues
from backplane.run_actions.pushing import publish_events, push_added, push_again, push_open_message, push_run
from backplane.store import Store

log = structlog.get_logger()

RETRY_AFTER_MAX_SECONDS = 3600


@dataclass(slots=True)
class ReservedPlace:
    """A place in a queue that is reserved for a run of this priority. `is_used`: the run has taken it up."""

    priority: Priority
    queue: str
    is_used: bool = False


class RunActions:
    def __init__(
        self,
        store: Store,
        queue: Queue,
        event_log: EventLog,
        storage_limits: StorageLimits,
        known_queues: KnownQueues,
    ) -> None:
        self._store = store
        self._queue = queue
        self._known_queues = known_queues
        self._event_log = event_log
        self._storage_limits = storage_limits

    async def retry(self, user: User, run_id: str, *, uncertain_step_is_done: bool | None) -> Run:
        """Raises NotFound, Conflict (the call does not decide an uncertain step), TransitionNotAllowed,
        StorageExceeded, QueueFull, Unavailable (database)."""
        await self._storage_limits.check_start(user.id)
        async with self.place(user.id, run_id, user.priority, await self.queue_of(run_id)) as place:
            run, events = await self._store.runs.retry(user.id, run_id, uncertain_step_is_done=uncertain_step_is_done)
            await self.push(run, events, place)
            return run

    async def replay(self, user: User, run_id: str, idempotency_key: str | None, *, execute: bool = False) -> Run:
        """Raises NotFound, FilesGone, TransitionNotAllowed, StorageExceeded, IdempotencyKeyReused, QueueFull,
        Unavailable (database)."""
        new_id = new_run_id()
        idempotency = idempotency_of(idempotency_key, ["replay", run_id, execute])

        async def make() -> Changed:
            return await self._store.derived_runs.replay(
                user.id, run_id, new_id, user.priority, execute=execute, idempotency=idempotency
            )

        return await self.derive(user, run_id, new_id, make, idempotency, start=True)

    async def redrive(self, run_id: str) -> Run:
        """Queue a dead-lettered run again, whoever owns it. Raises NotFound, QueueFull, Unavailable (database)."""
        found = await self._store.runs.find(run_id)
        if found is None:
            raise no_dead_letter(run_id)
        async with self.place(found.user_id, run_id, found.priority, found.queue) as place:
            run, events = await self._store.runs.redrive(run_id)
            await self.push(run, events, place)
            return run

    async def cancel(self, user: User, run_id: str) -> Run:
        return await self._cancelled(*await self._store.runs.cancel(user.id, run_id))

    async def terminate(self, user: User, agent_id: str, *, force: bool) -> Agent:
        """End an agent. Its open message is cancelled, unless a worker carries it out, and with `force` that too. What
        is in its mailbox stays there, but for messages for whose answer somebody waits. Raises NotFound."""
        agent = await self._store.agents.terminate(user.id, agent_id)
        if agent.open_run_id is not None:
            run = await self._store.runs.find(agent.open_run_id)
            if run is not None and run.status not in FINAL and (force or run.status is not RunStatus.RUNNING):
                await self.end_message(run.id, agent_terminated())
        for run_id in await self._store.agents.awaited_mail(agent_id):
            await self.end_message(run_id, agent_terminated())
        return await self._store.agents.get(user.id, agent_id)

    async def end_message(self, run_id: str, error: RunError) -> None:
        """Cancel a message to an agent for this reason, whoever owns it; one that is over stays as it is. Raises
        Unavailable (database)."""
        changed = await self._store.agent_repair.end(run_id, error)
        if changed is not None:
            await self._cancelled(*changed)

    async def _cancelled(self, run: Run, events: Sequence[Event]) -> Run:
        """What follows upon the commit of a cancel, or of the request for one."""
        try:
            if run.status is RunStatus.CANCELLED:
                await self._queue.forget(run.id)
                await self.publish(run, events)
            else:
                await self._queue.announce_cancel(run.id)
        except Unavailable as error:
            log.warning("cancel is in the database only, for now", run=run.id, error=error.message)
        if run.handler is not None or run.agent_id is not None:
            for child_id in await self._store.runs.unfinished_children(run.id):
                await self._cancelled(*await self._store.runs.cancel(run.user_id, child_id))
        if run.parent_id is not None and run.status is RunStatus.CANCELLED:
            await push_again(self._store, self._queue, self._event_log, run.parent_id)
        if run.agent_id is not None:
            await self.push_message_of(run.agent_id)
        return run

    async def wake(self, wait: EventWait) -> bool:
        """Queue the run again that waited for this, now that the wait has ended. Returns whether it was queued now.
        Raises Unavailable (database)."""
        woken = await self._store.event_waits.wake(wait)
        if woken.run is None:
            return False
        await self.push(woken.run, woken.events)
        return True

    async def derive(
        self,
        user: User,
        run_id: str,
        new_id: str,
        make: Callable[[], Awaitable[Changed]],
        idempotency: tuple[str, str] | None,
        *,
        start: bool,
    ) -> Run:
        try:
            await self._storage_limits.check_new_run(user.id)
            if not start:
                return (await make())[0]
            async with self.place(user.id, new_id, user.priority, await self.queue_of(run_id)) as place:
                run, events = await make()
                if run.id == new_id:
                    await self.push(run, events, place)
                return run
        except (QueueFull, StorageExceeded):
            if idempotency and (earlier := await self._store.runs.made_before(user.id, *idempotency)):
                return earlier
            raise

    async def queue_of(self, run_id: str) -> str:
        """The queue of a run that is there. Where no queue but the default one is known, the run is not looked up."""
        if not await self._known_queues.has_others():
            return DEFAULT_QUEUE
        found = await self._store.runs.find(run_id)
        return found.queue if found else DEFAULT_QUEUE

    @asynccontextmanager
    async def place(
        self, user_id: str, run_id: str, priority: Priority, queue: str = DEFAULT_QUEUE
    ) -> AsyncIterator[ReservedPlace]:
        """Reserve a place in the queue while the block runs. If nothing was queued there, the place is free again."""
        place = ReservedPlace(priority, queue)
        try:
            full = await self._queue.admit(run_id, user_id, priority, queue)
        except Unavailable:
            # The queue cannot be asked now. A run that is accepted is not lost: a reaper will push it.
            yield place
            return
        if full:
            raise await self._queue_full(full, user_id, priority, queue)
        try:
            yield place
        finally:
            if not place.is_used:
                with suppress(Unavailable):
                    await self._queue.give_up_place(run_id, user_id, priority, queue)

    async def _queue_full(self, full: Full, user_id: str, priority: Priority, queue: str) -> QueueFull:
        """The error of a full queue. There is room again when the next run that counts is claimed: one of the user's,
        or of the tier, or any. While no worker is alive nobody knows when; then it is the initial estimate of one
        run."""
        is_own = full.limit in (Limit.USER, Limit.SHARE)
        statistics = await self._queue.statistics(queue)
        nearest = await self._queue.nearest_of(user_id) if is_own else None
        if nearest is not None and nearest.wait is not None:
            wait = nearest.wait
        else:
            ahead = sum(count for other, count in statistics.queued.items() if other > priority)
            wait = statistics.wait(1 + (ahead if full.limit is Limit.TIER else 0))
        seconds = min(max(ceil(wait.p50), 1), RETRY_AFTER_MAX_SECONDS)
        message = f"{queue_full(full, priority, queue)}; come back in about {seconds} s"
        return (TooManyWaiting if is_own else QueueFull)(message, full.limit, seconds)

    async def push(self, run: Run, events: Sequence[Event], place: ReservedPlace | None = None) -> None:
        """Push a run that is queued in the database to the queue, and publish its events. Never raises Unavailable."""
        if run.in_mailbox:
            # A message that is to be done again, whose agent has another one open or no process.
            await self._publish_if_possible(run, events)
        else:
            queued = await push_run(self._queue, self._event_log, run, events)
            if place is not None:
                place.is_used = queued and (place.priority, place.queue) == (run.priority, run.queue)
        if run.agent_id is not None:
            await self.push_message_of(run.agent_id)

    async def push_added(self, added: AddedMessage) -> None:
        """Push a new message to an agent, if it was opened, and publish its events. Never raises Unavailable."""
        await push_added(self._store, self._queue, self._event_log, added)

    async def check_new_run(self, user_id: str) -> None:
        """Whether the user may keep one more run. Raises StorageExceeded."""
        await self._storage_limits.check_new_run(user_id)

    async def push_message_of(self, agent_id: str) -> None:
        """Push the open message of an agent, and place an agent that needs it. Never raises Unavailable."""
        await push_open_message(self._store, self._queue, self._event_log, agent_id)

    async def _publish_if_possible(self, run: Run, events: Sequence[Event]) -> None:
        try:
            await self.publish(run, events)
        except Unavailable as error:
            log.warning("events are in the database only, for now", run=run.id, error=error.message)

    async def publish(self, run: Run, events: Sequence[Event]) -> None:
        await publish_events(self._event_log, run, events)


def queue_full(full: Full, priority: Priority, queue: str = DEFAULT_QUEUE) -> str:
    """The sentence that says which limit is reached, and what helps."""
    tier = priority.name.lower()
    of_queue = "" if queue == DEFAULT_QUEUE else f" {queue!r}"
    in_queue = f" in the queue{of_queue}" if of_queue else ""
    match full.limit:
        case Limit.USER:
            return (
                f"{full.waiting} runs of yours wait already, and {full.most} may (QUEUE_MAX_WAITING): let some end, or "
                "cancel some"
            )
        case Limit.TIER:
            return (
                f"{full.waiting} runs of the priority {tier} wait already{in_queue}, of all users, and {full.most} may "
                "(QUEUE_MAX_WAITING_FREE, _STANDARD, _BETA, _ADMIN): try again later"
            )
        case Limit.SHARE:
            return (
                f"{full.waiting} runs of yours stand in the queue{of_queue} of all users, and no user may "
                f"have more than {full.most} there (half of QUEUE_MAX_WAITING_ALL, or of the priority's own limit): "
                "let some end, or cancel some"
            )
    return (
        f"the platform's queue{of_queue} is full: {full.waiting} runs of all users wait, and {full.most} may before "
        f"one of the priority {tier} is refused (QUEUE_MAX_WAITING_ALL): try again later"
    )


def idempotency_of(key: str | None, request: Any) -> tuple[str, str] | None:
    """The key, and a digest of the request that it stands for."""
    if key is None:
        return None
    body = json.dumps(request, sort_keys=True)
    return key, hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
