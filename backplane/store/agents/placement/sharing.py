"""Which agents at work give their place to others that wait for one, and who comes before whom.

It is found in the rows, at the end of a turn, by whoever ends it: nobody is asked to go, so no agent is asked in vain,
and a crash leaves nothing half done. An agent that has gone waits for a place as the others do. Its message is opened
by whoever gives it one.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, case, func, select

from backplane.domain.agent_places import PLACE_FOR, UsersPlaces, WaitingAgent, gives_place
from backplane.domain.agents import choose_process
from backplane.store.agents.placement.needs import may_displace, most_urgent
from backplane.store.agents.placement.room import live_processes, ranges_of, room_in
from backplane.store.agents.tables import agent_pools, agents
from backplane.store.clock import database_now

WAITING_LOOKED_AT = 100


def must_give(connection: Connection, agent: Row[Any]) -> bool:
    """Whether an agent whose turn is over gives its place up now. `agent`: its locked row."""
    if agent.process_id is None or agent.placed_at is None:
        return False
    placed = datetime.now(UTC) - agent.placed_at
    if placed < PLACE_FOR:
        return False
    now = database_now(connection)
    live = live_processes(connection, agent.pool, now)
    own = next((one.process for one in live if one.process.id == agent.process_id), None)
    if own is None or room_in(one for one in live if one.process.ranges is None):
        return False
    most = connection.scalar(select(agent_pools.c.max_processes).where(agent_pools.c.name == agent.pool)) or 0
    waiting = [
        WaitingAgent(one.user_id, now - one.waits_since)
        for one in most_urgent(connection, agent.pool, now, WAITING_LOOKED_AT, ranges_of(own))
        if one.agent_id != agent.id
        and may_displace(one.work_since, now, is_full=len(live) >= most)
        and choose_process(one.agent_id, one.number, live) is None
    ]
    if not waiting:
        return False
    return gives_place(agent.user_id, placed, waiting, _users(connection, agent.pool, agent.placed_at))


def is_behind(connection: Connection, agent: Row[Any]) -> bool:
    """Whether an agent that had a place a moment ago has to leave the free ones to others, that wait for longer.
    `agent`: its locked row."""
    if not agent.generation or datetime.now(UTC) - agent.last_active_at >= PLACE_FOR:
        return False
    now = database_now(connection)
    live = live_processes(connection, agent.pool, now)
    process = choose_process(agent.id, agent.number, live)
    if process is None:
        return False
    room = room_in(one for one in live if one.process.ranges == process.ranges)
    before = most_urgent(connection, agent.pool, now, room, ranges_of(process))
    return len(before) == room and agent.id not in {one.agent_id for one in before}


def _users(connection: Connection, pool: str, placed_at: datetime) -> dict[str, UsersPlaces]:
    earlier = func.sum(case((agents.c.placed_at < placed_at, 1), else_=0)).label("earlier")
    query = (
        select(agents.c.user_id, func.count().label("places"), earlier)
        .where(agents.c.pool == pool, agents.c.process_id.is_not(None))
        .group_by(agents.c.user_id)
    )
    return {row.user_id: UsersPlaces(row.places, row.earlier) for row in connection.execute(query)}
