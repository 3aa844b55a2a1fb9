"""Events of the bus that become messages to agents: which roles listen to which, and how far each agent is.

A process of a pool writes down what the pool's role listens to; a controller looks for agents of such roles behind
whose place there are events (`controller.agent_events`). A message that was made of an event is made once, by its
idempotency key; the agent's place moves after it. So whoever is killed in between loses nothing and doubles nothing.

An agent gets the events that were stored after it was made, and after its role began to listen.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from backplane.domain.agents import Agent, ListeningAgent
from backplane.store.agents.agents import AGENT_COLUMNS, agent_of
from backplane.store.agents.tables import agent_event_cursors, agent_pools, agents, role_events
from backplane.store.bus.tables import bus_events, bus_logs
from backplane.store.clock import database_now
from backplane.store.database import Database


class AgentEvents:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def listen(self, role: str, patterns: Sequence[str]) -> None:
        """From now on, events of these types are for agents of this role; where there are none, no events are. The same
        again changes nothing."""
        wanted = list(patterns)

        def write(connection: Connection) -> None:
            here = role_events.c.role == role
            there = connection.scalar(select(role_events.c.patterns).where(here).with_for_update())
            if there == wanted or (there is None and not wanted):
                return
            if not wanted:
                connection.execute(delete(role_events).where(here))
                return
            values = {"patterns": wanted, "since": database_now(connection)}
            if there is None:
                connection.execute(insert(role_events), {"role": role, **values})
            else:
                connection.execute(update(role_events).where(here).values(values))

        await self._written(write)

    async def newest(self) -> int | None:
        """A number that rises with each event that is stored; None where no role listens to any."""

        def read(connection: Connection) -> int | None:
            if connection.execute(select(role_events.c.role).limit(1)).one_or_none() is None:
                return None
            return connection.scalar(select(func.coalesce(func.sum(bus_logs.c.last_cursor), 0))) or 0

        return await self._database.read(read)

    async def due(self, limit: int) -> list[ListeningAgent]:
        """Agents whose user has events behind their place. Those that are looked at for the first time get their
        place."""
        query: Select[Any] = (
            select(*AGENT_COLUMNS, role_events.c.patterns, role_events.c.since, agent_event_cursors.c.cursor)
            .join(agent_pools, agent_pools.c.name == agents.c.pool)
            .join(role_events, role_events.c.role == agent_pools.c.role)
            .join(bus_logs, bus_logs.c.user_id == agents.c.user_id)
            .outerjoin(agent_event_cursors, agent_event_cursors.c.agent_id == agents.c.id)
            .where(agents.c.terminated_at.is_(None))
            .where(bus_logs.c.last_cursor > func.coalesce(agent_event_cursors.c.cursor, 0))
            .order_by(agent_event_cursors.c.look_at, agents.c.id)
            .limit(limit)
        )

        def read(connection: Connection) -> list[ListeningAgent]:
            is_due = or_(
                agent_event_cursors.c.look_at.is_(None), agent_event_cursors.c.look_at <= database_now(connection)
            )
            found = []
            for row in connection.execute(query.where(is_due)).all():
                agent, cursor = agent_of(row), row.cursor
                if cursor is None:
                    cursor = _begin(connection, agent, max(agent.created_at, row.since))
                found.append(ListeningAgent(agent, tuple(row.patterns), cursor))
            return found

        return await self._database.read(read)

    async def passed(self, agent_id: str, cursor: int, *, pause_seconds: float = 0.0) -> None:
        """The agent has all events up to this place. It is looked at again after the pause."""

        def write(connection: Connection) -> None:
            look_at = database_now(connection) + timedelta(seconds=pause_seconds)
            here = agent_event_cursors.c.agent_id == agent_id
            there = connection.scalar(select(agent_event_cursors.c.cursor).where(here).with_for_update())
            if there is not None:
                values = {"cursor": max(there, cursor), "look_at": look_at}
                connection.execute(update(agent_event_cursors).where(here).values(values))
            elif connection.execute(select(agents.c.id).where(agents.c.id == agent_id)).one_or_none() is not None:
                values = {"agent_id": agent_id, "cursor": cursor, "look_at": look_at}
                connection.execute(insert(agent_event_cursors), values)

        await self._written(write)

    async def _written(self, write: Callable[[Connection], None]) -> None:
        try:
            await self._database.write(write)
        except IntegrityError:  # two at the same moment made the row: there is one to change now
            await self._database.write(write)


def _begin(connection: Connection, agent: Agent, since: datetime) -> int:
    """The place of the user's last event that was stored before."""
    query = select(func.max(bus_events.c.cursor)).where(
        bus_events.c.user_id == agent.user_id, bus_events.c.stored_at <= since.astimezone(UTC)
    )
    return connection.scalar(query) or 0
