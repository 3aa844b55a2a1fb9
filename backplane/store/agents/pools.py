"""Pools of agents. They belong to the platform.

Whoever makes, ends or places an agent of a pool locks the pool's row first: so numbers are given once, and no process
gets more agents than it has room for.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from backplane.domain.agents import Pool, PoolActivity, PoolCounts
from backplane.errors import Conflict, InvalidInput, NotFound
from backplane.store.agents.activity import activity
from backplane.store.agents.placement.needs import counted
from backplane.store.agents.tables import agent_pools, agent_processes, agents
from backplane.store.clock import database_now
from backplane.store.database import Database

POOL_COLUMNS = [column for column in agent_pools.c if column.name != "free_number"]
# Weaker than that of a key: PostgreSQL looks the pool up (FOR KEY SHARE) when an agent is changed twice in one
# transaction, and that may have locked the agent without the pool.
_LOCKED_POOL = select(agent_pools).where(agent_pools.c.name == bindparam("of_pool")).with_for_update(key_share=True)

_SERVES = (
    agent_processes.c.pool == agent_pools.c.name,
    agent_processes.c.lease_until > bindparam("now", type_=agent_processes.c.lease_until.type),
    agent_processes.c.draining_since.is_(None),
)
_AGENTS = (
    select(agents.c.pool, func.count().label("agents"), func.count(agents.c.process_id).label("placed"))
    .where(agents.c.terminated_at.is_(None))
    .group_by(agents.c.pool)
    .subquery()
)
_COUNTS: Select[Any] = (
    select(
        *POOL_COLUMNS,
        select(func.count()).where(*_SERVES).scalar_subquery().label("processes"),
        select(func.coalesce(func.sum(agent_processes.c.capacity), 0))
        .where(*_SERVES)
        .scalar_subquery()
        .label("capacity"),
        _AGENTS.c.agents,
        _AGENTS.c.placed,
    )
    .outerjoin(_AGENTS, _AGENTS.c.pool == agent_pools.c.name)
    .order_by(agent_pools.c.name)
)


def locked_pool(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(_LOCKED_POOL, {"of_pool": name}).one_or_none()


def no_pool(name: str) -> NotFound:
    return NotFound(f"there is no pool {name}; GET /api/v1/agents/pools lists those there are")


class AgentPools:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_all(self) -> list[Pool]:
        """By name."""
        query = select(*POOL_COLUMNS).order_by(agent_pools.c.name)
        return [_pool(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def get(self, name: str) -> Pool:
        """Raises NotFound."""
        query = select(*POOL_COLUMNS).where(agent_pools.c.name == name)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise no_pool(name)
        return _pool(row)

    async def create(self, pool: Pool) -> bool:
        """Whether it was made: not where there is one of this name, which stays as it is."""
        row = {**_values(pool), "name": pool.name, "created_at": pool.created_at, "free_number": 1}

        def write(connection: Connection) -> bool:
            if locked_pool(connection, pool.name) is not None:
                return False
            connection.execute(insert(agent_pools).values(row))
            return True

        try:
            return await self._database.write(write)
        except IntegrityError:  # two at the same moment
            return False

    async def put(self, pool: Pool) -> tuple[Pool, bool]:
        """Make a pool, or change the one of this name; whether it is new."""
        values = _values(pool)

        def write(connection: Connection) -> tuple[Pool, bool]:
            if locked_pool(connection, pool.name) is None:
                now = datetime.now(UTC)
                row = {**values, "name": pool.name, "created_at": now, "free_number": 1}
                return _pool(connection.execute(insert(agent_pools).values(row).returning(*POOL_COLUMNS)).one()), True
            return _changed(connection, pool.name, values), False

        return await self._database.write(write)

    async def patch(self, name: str, values: Mapping[str, Any]) -> Pool:
        """Change these fields of a Pool. Raises NotFound, and InvalidInput where it would have more processes at least
        than at most."""

        def write(connection: Connection) -> Pool:
            there = locked_pool(connection, name)
            if there is None:
                raise no_pool(name)
            least, most = (values.get(field, there._mapping[field]) for field in ("min_processes", "max_processes"))
            if least > most:
                message = "min_processes: it would be more than max_processes; change both"
                raise InvalidInput(message, field="min_processes")
            return _changed(connection, name, values)

        return await self._database.write(write)

    async def delete(self, name: str) -> None:
        """Raises NotFound, and Conflict while there are agents in it, or processes that are not over."""

        def write(connection: Connection) -> None:
            if locked_pool(connection, name) is None:
                raise no_pool(name)
            count = connection.scalar(select(func.count()).where(agents.c.pool == name)) or 0
            if count:
                raise Conflict(f"pool {name} has {count} agents; terminate and delete them first")
            if connection.scalar(select(agent_processes.c.id).where(agent_processes.c.pool == name).limit(1)):
                raise Conflict(f"processes of pool {name} are still running; stop them first")
            connection.execute(delete(agent_pools).where(agent_pools.c.name == name))

        await self._database.write(write)

    async def counts(self) -> list[PoolCounts]:
        """Of all pools, by name."""

        def read(connection: Connection) -> list[PoolCounts]:
            now = database_now(connection)
            unplaced = counted(connection, now)
            return [
                PoolCounts(
                    _pool(row), row.processes, row.capacity, row.agents or 0, row.placed or 0, unplaced.get(row.name, 0)
                )
                for row in connection.execute(_COUNTS, {"now": now})
            ]

        return await self._database.read(read)

    async def activity(self) -> list[PoolActivity]:
        """What the agents of all pools do, counted."""
        return await self._database.read(activity)


def _values(pool: Pool) -> dict[str, Any]:
    return {
        "role": pool.role,
        "agents_per_process": pool.agents_per_process,
        "min_processes": pool.min_processes,
        "max_processes": pool.max_processes,
        "sleep_after_seconds": pool.sleep_after_seconds,
    }


def _changed(connection: Connection, name: str, values: Mapping[str, Any]) -> Pool:
    statement = update(agent_pools).where(agent_pools.c.name == name).values(dict(values)).returning(*POOL_COLUMNS)
    return _pool(connection.execute(statement).one())


def _pool(row: Row[Any]) -> Pool:
    return Pool(**{column.name: row._mapping[column.name] for column in POOL_COLUMNS})
