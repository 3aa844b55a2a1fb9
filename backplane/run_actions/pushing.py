"""Tells the queue and the watchers of a run that is queued in the database.

Nothing here is needed for the run to go on: what is not published, the leading worker finds in the database.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from backplane.domain.agents import AddedMessage, AgentPlace
from backplane.domain.events import Event
from backplane.domain.runs import Run, RunStatus
from backplane.errors import Unavailable
from backplane.logs.base import Batch, EventLog
from backplane.queue.base import Job, Queue
from backplane.store import Store

log = structlog.get_logger()

EVENTS_SHOWN = 100
"""Of a run that another one has queued, the most events that its watchers are sent; they find the rest."""


async def push_run(queue: Queue, event_log: EventLog, run: Run, events: Sequence[Event]) -> bool:
    """Push a run that is queued in the database, and publish its events. Whether it was pushed: not where it waits
    already, or where Redis is away. Never raises Unavailable."""
    try:
        # Both at once: if a worker is quicker than the events, watchers find them in the database.
        job = Job(run.id, run.user_id, run.priority, run.generation, run.resource or "", queue=run.queue)
        _, [queued] = await asyncio.gather(publish_events(event_log, run, events), queue.enqueue([job]))
    except Unavailable as error:
        log.warning("accepted, but not pushed; a worker's reaper will", run=run.id, error=error.message)
        return False
    return queued


async def publish_events(event_log: EventLog, run: Run, events: Sequence[Event]) -> None:
    if events:
        await event_log.append([Batch(run.id, run.generation, events, run.user_id, stored_id=events[-1].id)])


async def push_added(store: Store, queue: Queue, event_log: EventLog, added: AddedMessage) -> None:
    """Push a new message to an agent, if it was opened, and publish its events. Never raises Unavailable."""
    run = added.run
    if added.opened == run.id and added.placed is None:
        await push_run(queue, event_log, run, added.events)
        return
    with suppress(Unavailable):
        await publish_events(event_log, run, added.events)
    if added.opened is not None:
        await push_open_message(store, queue, event_log, run.agent_id or "")


async def push_open_message(store: Store, queue: Queue, event_log: EventLog, agent_id: str) -> AgentPlace | None:
    """Push the message of an agent that a write may have opened: its end of another one, or a message that it has sent.
    An agent that needs a process is placed where there is room, and others of its pool where it has given them its own.
    Returns the new place, whose process is to be rung. Never raises Unavailable."""
    placed: AgentPlace | None = None
    try:
        agent = await store.agents.find(agent_id)
        if agent is not None and agent.process_id is None and agent.terminated_at is None:
            placed = await store.agent_processes.place(agent_id)
            if placed is None:
                await place_waiting(store, queue, event_log, agent.pool)
            agent = await store.agents.find(agent_id)
        if agent is not None and agent.open_run_id is not None:
            run = await store.runs.find(agent.open_run_id)
            await _push_queued(store, queue, event_log, run)
    except Unavailable as error:
        log.warning("an agent's message is not pushed; a worker's reaper will", agent=agent_id, error=error.message)
    return placed


async def place_waiting(store: Store, queue: Queue, event_log: EventLog, pool: str) -> None:
    """Place the agents of a pool that need it, as far as there is room, and push what is opened by that. Raises
    Unavailable."""
    for placed in await store.agent_processes.place_waiting(pool):
        if placed.opened:
            await push_again(store, queue, event_log, placed.opened)


async def push_again(store: Store, queue: Queue, event_log: EventLog, run_id: str) -> None:
    """Push a run that another one's end may have queued. The agent of a message is placed, where it has no process.
    Never raises Unavailable."""
    try:
        run = await store.runs.find(run_id)
        if run is not None and run.status is RunStatus.QUEUED and run.agent_id is not None:
            await store.agent_processes.place(run.agent_id)
        await _push_queued(store, queue, event_log, run)
    except Unavailable as error:
        log.warning("a run that waited is not pushed; a worker's reaper will", run=run_id, error=error.message)


async def _push_queued(store: Store, queue: Queue, event_log: EventLog, run: Run | None) -> None:
    """Push it, if it is queued, with the events that its watchers have not been sent. Raises Unavailable."""
    if run is None or run.status is not RunStatus.QUEUED:
        return
    last = await store.events.last_id(run.id)
    published = await event_log.last_id(run.id)
    events = await store.events.after(run.id, max(published or 0, last - EVENTS_SHOWN), EVENTS_SHOWN)
    await push_run(queue, event_log, run, events)
