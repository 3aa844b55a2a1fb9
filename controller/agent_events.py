"""Events of the bus become messages to the agents whose role listens to them.

All is found in the database (`store.agents.events`), and each message is made once, so any number of controllers may do
it at once. An agent whose mailbox is full, or whose user may keep no more runs, gets its events when there is room
again; they stay on the bus until then.

An agent does not hear of its own turns. A run event that messages have led to is as deep as those messages, and is
dropped where they may lead to no further one. Of all that one event has led to, an agent hears of each other agent
once: ten agents that listen to one another's ends would make a milliard of messages of it else, ten deep.
"""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from backplane.domain.agents import Agent, ListeningAgent, message_to
from backplane.domain.bus import EventFilter, StoredEvent
from backplane.domain.runs import Priority, Run, RunStatus, new_run_id
from backplane.errors import AgentTerminated, MailboxFull, NotFound, StorageExceeded
from backplane.run_actions.actions import RunActions
from backplane.settings import fixed
from backplane.store import Store
from controller.batches import repeat_batches

log = structlog.get_logger()

LOOKED_AT_SECONDS = 30.0
"""How often all agents are looked at, also where no event was stored: one whose mailbox was full may have room."""
SUBJECT_CHARS = 200


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Of the messages."""

    timeout_seconds: int
    max_retries: int


@dataclass(frozen=True, slots=True)
class _Chain:
    """What has led to an event. `depth`: how many messages. `root`: the event with which it began. `key`: of the
    message that it becomes."""

    depth: int
    root: str
    key: str


class AgentEventsLoop:
    def __init__(self, store: Store, actions: RunActions, rules: TurnRules) -> None:
        self._store = store
        self._actions = actions
        self._rules = rules
        self._seen: int | None = None
        self._looked_at = 0.0

    async def run(self) -> None:
        await repeat_batches(self.work, what="events for agents", pause_seconds=fixed.BUS_POLL_SECONDS)

    async def work(self) -> bool:
        """One batch of agents, and of events of each. Returns whether there may be more. Raises Unavailable."""
        newest, now = await self._store.agent_events.newest(), asyncio.get_running_loop().time()
        if newest is None or (newest == self._seen and now - self._looked_at < LOOKED_AT_SECONDS):
            return False
        due = await self._store.agent_events.due(fixed.BUS_BATCH)
        is_more = [await self._deliver(listening) for listening in due]
        if any(is_more) or len(due) == fixed.BUS_BATCH:
            return True
        self._seen, self._looked_at = newest, now
        return False

    async def _deliver(self, listening: ListeningAgent) -> bool:
        """Returns whether there are more events for the agent."""
        agent, cursor = listening.agent, listening.cursor
        wanted = EventFilter(listening.patterns)
        page = await self._store.bus.page(agent.user_id, cursor, fixed.BUS_BATCH, wanted)
        for event in page.events:
            try:
                await self._send(agent, event)
            except (MailboxFull, StorageExceeded) as error:
                log.info("events for an agent wait for room", agent=agent.id, error=error.code)
                pause = error.retry_after if isinstance(error, MailboxFull) else LOOKED_AT_SECONDS
                await self._store.agent_events.passed(agent.id, cursor, pause_seconds=pause)
                return False
            except (AgentTerminated, NotFound):
                return False
            cursor = event.cursor
        await self._store.agent_events.passed(agent.id, page.until)
        return page.more

    async def _send(self, agent: Agent, event: StoredEvent) -> None:
        """Raises MailboxFull, StorageExceeded, AgentTerminated, NotFound."""
        body = json.loads(event.line)
        chain = await self._chain(agent, event, body)
        if chain is None:
            return
        await self._actions.check_new_run(agent.user_id)
        origin = {"kind": "event", "name": event.type, "id": body["id"], "source": body["source"]}
        origin |= {"depth": chain.depth, "root": chain.root}
        subject = str(body.get("subject", ""))[:SUBJECT_CHARS]
        message = Run(
            id=new_run_id(),
            user_id=agent.user_id,
            status=RunStatus.CREATED,
            priority=Priority.NORMAL,
            prompt=f"{event.type} ({subject})" if subject else event.type,
            created_at=datetime.now(UTC),
            timeout_seconds=self._rules.timeout_seconds,
            max_retries=self._rules.max_retries,
            input=body,
            origin=origin,
        )
        added = await self._store.agent_messages.add(
            message_to(agent, message), mailbox_max=fixed.AGENT_MAILBOX_MAX, idempotency=(chain.key, "")
        )
        if added.is_new:
            await self._actions.push_added(added)

    async def _chain(self, agent: Agent, event: StoredEvent, body: dict[str, Any]) -> _Chain | None:
        """None: the event is not for this agent. No key of a request has a line break."""
        run_id = (body.get("data") or {}).get("run_id") if body["type"].startswith("run.") else None
        run = await self._store.runs.find(str(run_id)) if run_id else None
        first = _Chain(0, str(event.cursor), f"event\n{agent.id}\n{event.cursor}")
        if run is None:
            return first
        if run.agent_id == agent.id:
            return None
        origin = run.origin or {}
        depth = int(origin.get("depth", 0)) + 1
        if depth > fixed.AGENT_SEND_DEPTH_MAX:
            log.warning("an event is dropped: messages have led to it too often", agent=agent.id, run=run.id)
            return None
        root = origin.get("root")
        if root is None:
            return replace(first, depth=depth)
        # A run that an agent's turn has started is in the name of that agent.
        return _Chain(depth, root, f"event\n{agent.id}\n{root}\n{run.agent or ''}")
