"""The processes of a pool that take agents, and how many each has."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from backplane.domain.agents import Occupancy, PoolProcess, Ranges, parse_ranges
from backplane.store.agents.tables import agent_processes, agents

WITH_PLACES: Select[Any] = (
    select(*agent_processes.c, func.count(agents.c.id).label("agents"))
    .outerjoin(agents, agents.c.process_id == agent_processes.c.id)
    .group_by(*agent_processes.c)
)


def live_processes(connection: Connection, pool: str, now: datetime) -> list[Occupancy]:
    """Those that take agents now. `now`: by the database's clock."""
    lives = (
        agent_processes.c.pool == pool,
        agent_processes.c.lease_until > now,
        agent_processes.c.draining_since.is_(None),
    )
    return [occupancy_of(row) for row in connection.execute(WITH_PLACES.where(*lives))]


def room_in(occupancies: Iterable[Occupancy]) -> int:
    """Free places."""
    return sum(max(one.process.capacity - one.agents, 0) for one in occupancies)


def ranges_of(process: PoolProcess) -> Ranges | None:
    """The numbers that it takes; None: any."""
    return None if process.ranges is None else parse_ranges(process.ranges)


def process_of(row: Row[Any]) -> PoolProcess:
    return PoolProcess(**{column.name: row._mapping[column.name] for column in agent_processes.c})


def occupancy_of(row: Row[Any]) -> Occupancy:
    return Occupancy(process_of(row), row.agents)
