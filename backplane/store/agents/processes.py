"""The processes of pools, and which agents are placed where.

A process renews its lease by the database's clock. When the lease is over, its agents lose their place and are placed
elsewhere; their runs come back by their own leases. A place says who serves the agent's queue. Two processes that both
believe to have an agent do no harm: one of them gets each run.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, delete, func, insert, or_, select, update

from backplane.domain.agents import (
    AgentPlace,
    Occupancy,
    PoolProcess,
    Renewal,
    choose_process,
    parse_ranges,
    takes_number,
)
from backplane.domain.runs import RunStatus
from backplane.store.agents.bell import PlaceBell
from backplane.store.agents.placement.needs import NEW_FOR, SLEEPS_LONG, Needing, may_displace, most_urgent
from backplane.store.agents.placement.room import WITH_PLACES, live_processes, occupancy_of, process_of, room_in
from backplane.store.agents.placement.sharing import is_behind
from backplane.store.agents.pools import locked_pool, no_pool
from backplane.store.agents.tables import agent_pools, agent_processes, agents
from backplane.store.agents.turns import UPDATE_AGENT, first_in_mailbox_since, locked_agent, open_next
from backplane.store.clock import database_now
from backplane.store.database import Database
from backplane.store.tables import runs

PLACED_AT_ONCE = 100
LOOKED_AT = 1000
"""Of the agents that processes with room may take, how many are looked at."""

_ONE = agent_processes.c.id == bindparam("of_process")
_POOL_OF = select(agents.c.pool, agents.c.number, agents.c.process_id).where(agents.c.id == bindparam("of_agent"))
_QUEUED_LATER = (runs.c.status == RunStatus.QUEUED.value) & (
    runs.c.queued_at > bindparam("soon", type_=runs.c.queued_at.type)
)
_OPEN_RUN_WAITS = (
    select(runs.c.id)
    .where(runs.c.id == agents.c.open_run_id, or_(runs.c.status == RunStatus.WAITING.value, _QUEUED_LATER))
    .exists()
)
_IS_IDLE = agents.c.open_run_id.is_(None) | _OPEN_RUN_WAITS


class AgentProcesses:
    """Processes are called by the `bell` when their agents have changed."""

    def __init__(self, database: Database, bell: PlaceBell) -> None:
        self._database = database
        self._bell = bell

    async def register(
        self,
        process_id: str,
        pool: str,
        *,
        node: str,
        ranges: str | None,
        capacity: int,
        lease_seconds: float,
    ) -> PoolProcess:
        """Enter a process that lives now, in place of a row of the same id. Raises NotFound when there is no pool of
        this name."""

        def write(connection: Connection) -> PoolProcess:
            if locked_pool(connection, pool) is None:
                raise no_pool(pool)
            now = database_now(connection)
            connection.execute(delete(agent_processes).where(_ONE), {"of_process": process_id})
            values = {
                "id": process_id,
                "pool": pool,
                "node": node,
                "ranges": ranges,
                "capacity": capacity,
                "started_at": now,
                "heartbeat_at": now,
                "lease_until": now + timedelta(seconds=lease_seconds),
            }
            made = insert(agent_processes).values(values).returning(*agent_processes.c)
            return process_of(connection.execute(made).one())

        return await self._database.write(write)

    async def renew(self, process_id: str, lease_seconds: float) -> Renewal | None:
        """Renew the lease. None where there is no row any more: the lease was over, and the process has no agent."""

        def write(connection: Connection) -> Renewal | None:
            now = database_now(connection)
            values = {"heartbeat_at": now, "lease_until": now + timedelta(seconds=lease_seconds)}
            statement = update(agent_processes).where(_ONE).values(values).returning(agent_processes.c.draining_since)
            row = connection.execute(statement, {"of_process": process_id}).one_or_none()
            if row is None:
                return None
            own = select(agents.c.id).where(agents.c.process_id == process_id).order_by(agents.c.number)
            return Renewal(tuple(connection.scalars(own)), row.draining_since is not None)

        return await self._database.write(write)

    async def drain(self, process_id: str) -> None:
        """The process takes no agent any more, and those that it has go elsewhere, as far as there is room."""
        statement = (
            update(agent_processes)
            .where(_ONE)
            .values(
                draining_since=func.coalesce(
                    agent_processes.c.draining_since, bindparam("now", type_=agent_processes.c.draining_since.type)
                )
            )
        )

        def write(connection: Connection) -> str | None:
            if not _lock_pool_of(connection, process_id):
                return None
            connection.execute(statement, {"of_process": process_id, "now": database_now(connection)})
            return _take_off(connection, process_id)

        await self._ring_all(await self._database.write(write))

    async def deregister(self, process_id: str) -> None:
        """The process ends: its row goes, and its agents go elsewhere, as far as there is room."""

        def write(connection: Connection) -> str | None:
            if not _lock_pool_of(connection, process_id):
                return None
            connection.execute(delete(agent_processes).where(_ONE), {"of_process": process_id})
            return _take_off(connection, process_id)

        await self._ring_all(await self._database.write(write))

    async def _ring_all(self, pool: str | None) -> None:
        if pool is not None:
            await self._bell.ring(pool)

    async def expire(self) -> list[PoolProcess]:
        """Remove the processes whose lease is over; their agents go elsewhere, as far as there is room."""

        def late(connection: Connection) -> Sequence[str]:
            over = agent_processes.c.lease_until <= database_now(connection)
            return connection.scalars(select(agent_processes.c.id).where(over).order_by(agent_processes.c.id)).all()

        expired: list[PoolProcess] = []
        for process_id in await self._database.read(late):
            one = await self._database.write(partial(_expire, process_id=process_id))
            if one is not None:
                expired.append(one)
                await self._bell.ring(one.pool)
        return expired

    async def all(self) -> list[Occupancy]:
        """All processes, by pool and id, each with the number of its agents; also those whose lease is over."""
        query = WITH_PLACES.order_by(agent_processes.c.pool, agent_processes.c.id)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [occupancy_of(row) for row in rows]

    async def find(self, process_id: str) -> PoolProcess | None:
        query = select(agent_processes).where(_ONE)
        row = await self._database.read(
            lambda connection: connection.execute(query, {"of_process": process_id}).one_or_none()
        )
        return process_of(row) if row is not None else None

    async def place(self, agent_id: str) -> AgentPlace | None:
        """Place an agent that has something to do and no process, and open its next message. Where all are full, the
        agent that has been idle for longest makes room (see `may_displace`). None: there was nothing to do, or
        there is no room, or others have waited for it for longer; `place_waiting` tries again."""
        return await self._placed(agent_id, is_next=False)

    async def _placed(self, agent_id: str, *, is_next: bool) -> AgentPlace | None:
        placed = await self._database.write(lambda connection: place(connection, agent_id, is_next=is_next))
        if placed is not None:
            await self._bell.ring(placed.pool, placed.process_id)
        return placed

    async def place_waiting(self, pool: str, limit: int = PLACED_AT_ONCE) -> list[AgentPlace]:
        """Place up to `limit` agents of the pool that need a process and have none, most urgent first. Those for which
        there is no room cost no transaction each."""

        def look(connection: Connection) -> list[Needing]:
            now = database_now(connection)
            live = live_processes(connection, pool, now)
            idle = _idle_by_process(connection, pool, now) if live else Counter[str]()
            found = _takeable(connection, pool, now, live, idle)
            if not found:
                return []
            most = connection.scalar(select(agent_pools.c.max_processes).where(agent_pools.c.name == pool)) or 0
            displacing = {one.agent_id for one in found if may_displace(one.work_since, now, is_full=len(live) >= most)}
            return _with_room(found, live, displacing, idle)[:limit]

        placed: list[AgentPlace] = []
        for needing in await self._database.read(look):
            one = await self._placed(needing.agent_id, is_next=True)
            if one is not None:
                placed.append(one)
        return placed

    async def put_to_sleep(self, pool: str, limit: int = PLACED_AT_ONCE) -> list[str]:
        """Take up to `limit` agents of the pool off their processes that have been idle for as long as the pool lets
        them, longest first. An agent whose turn waits is idle too. Returns their ids."""

        def write(connection: Connection) -> list[str]:
            found = locked_pool(connection, pool)
            if found is None:
                return []
            now = database_now(connection)
            idle = _idle(agents.c.pool == pool, agents.c.process_id.is_not(None), limit=limit).where(
                agents.c.last_active_at <= now - timedelta(seconds=found.sleep_after_seconds)
            )
            ids = [row.id for row in connection.execute(idle, {"soon": now + SLEEPS_LONG})]
            if ids:
                connection.execute(update(agents).where(agents.c.id.in_(ids)).values(process_id=None))
            return ids

        asleep = await self._database.write(write)
        if asleep:
            await self._bell.ring(pool)
        return asleep


def place(connection: Connection, agent_id: str, *, is_next: bool = False) -> AgentPlace | None:
    """As `AgentProcesses.place`, in the caller's transaction, which has locked no agent yet. `is_next`: nobody comes
    before it."""
    found = connection.execute(_POOL_OF, {"of_agent": agent_id}).one_or_none()
    if found is None or found.process_id is not None:
        return None
    pool = locked_pool(connection, found.pool)
    agent = locked_agent(connection, agent_id)
    if pool is None or agent is None or agent.process_id is not None or agent.terminated_at is not None:
        return None
    work_since = _work_since(connection, agent)
    is_new = agent.generation == 0 and agent.created_at > database_now(connection) - NEW_FOR
    if work_since is None and not (is_new and agent.paused_at is None):
        return None
    if not is_next and is_behind(connection, agent):
        return None
    process_id = place_for(connection, pool, agent_id, found.number, work_since)
    if process_id is None:
        return None
    now = datetime.now(UTC)
    values = {"process_id": process_id, "generation": agents.c.generation + 1, "placed_at": now, "last_active_at": now}
    connection.execute(update(agents).where(agents.c.id == agent_id).values(values))
    return AgentPlace(agent_id, found.pool, process_id, open_next(connection, agent_id))


def _work_since(connection: Connection, agent: Row[Any]) -> datetime | None:
    """Since when it has had something to do. None: it has nothing to do now. `agent`: its locked row."""
    if agent.open_run_id is None:
        return first_in_mailbox_since(connection, agent.id) if agent.paused_at is None else None
    since = func.coalesce(runs.c.queued_at, runs.c.created_at).label("since")
    open_run = connection.execute(select(runs.c.status, since).where(runs.c.id == agent.open_run_id)).one()
    return open_run.since if open_run.status in (RunStatus.QUEUED, RunStatus.RUNNING) else None


def place_for(
    connection: Connection, pool: Row[Any], agent_id: str, number: int, work_since: datetime | None = None
) -> str | None:
    """The id of a process with room for this agent. Where all are full, the agent that has been idle for longest makes
    room for one that `may_displace` it. `pool`: its locked row."""
    now = database_now(connection)
    occupancies = live_processes(connection, pool.name, now)
    process = choose_process(agent_id, number, occupancies)
    if process is not None:
        return process.id
    takes = [one.process.id for one in occupancies if takes_number(one.process, number)]
    if not takes or not may_displace(work_since, now, is_full=len(occupancies) >= pool.max_processes):
        return None
    longest = _idle(agents.c.process_id.in_(takes), agents.c.id != agent_id, limit=1)
    idle = connection.execute(longest, {"soon": now + SLEEPS_LONG}).one_or_none()
    if idle is None:
        return None
    connection.execute(UPDATE_AGENT, {"of_agent": idle.id, "process_id": None})
    return str(idle.process_id)


def _takeable(
    connection: Connection, pool: str, now: datetime, live: Sequence[Occupancy], idle: Mapping[str, int]
) -> list[Needing]:
    """Agents that need a process, and that one with room, or with an idle agent, may take: those that none may are not
    looked at, so they keep none behind them waiting, however many there are."""
    found: dict[str, Needing] = {}
    for ranges in {one.process.ranges for one in live if room_in([one]) or idle.get(one.process.id)}:
        numbers = None if ranges is None else parse_ranges(ranges)
        for one in most_urgent(connection, pool, now, LOOKED_AT, numbers):
            found.setdefault(one.agent_id, one)
    return sorted(found.values(), key=lambda one: (one.hurry, one.share, one.waits_since, one.agent_id))


def _with_room(
    found: Iterable[Needing], occupancies: Sequence[Occupancy], displacing: Container[str], idle: Counter[str]
) -> list[Needing]:
    """Those for which there is room, and those that are `displacing` one of the `idle` agents (by process), as far as
    one look can tell."""
    places = {one.process.id: one for one in occupancies}
    chosen = list[Needing]()
    for needing in found:
        process = choose_process(needing.agent_id, needing.number, places.values())
        if process is not None:
            places[process.id] = Occupancy(process, places[process.id].agents + 1)
        else:
            takes = (one.process for one in occupancies if takes_number(one.process, needing.number))
            process = next((one for one in takes if needing.agent_id in displacing and idle[one.id] > 0), None)
            if process is None:
                continue
            idle[process.id] -= 1
        chosen.append(needing)
    return chosen


def _idle_by_process(connection: Connection, pool: str, now: datetime) -> Counter[str]:
    query = (
        select(agents.c.process_id, func.count().label("idle"))
        .where(agents.c.pool == pool, agents.c.process_id.is_not(None), _IS_IDLE)
        .group_by(agents.c.process_id)
    )
    return Counter({row.process_id: row.idle for row in connection.execute(query, {"soon": now + SLEEPS_LONG})})


def _idle(*which: ColumnElement[bool], limit: int) -> Select[Any]:
    """Those that have been idle for longest, locked. One that somebody else has locked is just being sent a message."""
    return (
        select(agents.c.id, agents.c.process_id)
        .where(*which, _IS_IDLE)
        .order_by(agents.c.last_active_at, agents.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=agents)
    )


def _lock_pool_of(connection: Connection, process_id: str) -> bool:
    """Whether there is such a process."""
    pool = connection.scalar(select(agent_processes.c.pool).where(_ONE), {"of_process": process_id})
    return pool is not None and locked_pool(connection, pool) is not None


def _take_off(connection: Connection, process_id: str) -> str | None:
    """The agents of a process that takes none any more lose their place. They get another one where there is room,
    those with something to do first. The pool's row is locked already. Returns the pool, where there are such
    agents."""
    own = (
        select(agents.c.id, agents.c.pool, agents.c.number, agents.c.open_run_id)
        .where(agents.c.process_id == process_id)
        .order_by(agents.c.id)
        .with_for_update()
    )
    rows = connection.execute(own).all()
    if not rows:
        return None
    connection.execute(update(agents).where(agents.c.process_id == process_id).values(process_id=None))
    pool = locked_pool(connection, rows[0].pool)
    for row in sorted(rows, key=lambda row: row.open_run_id is None):
        elsewhere = place_for(connection, pool, row.id, row.number) if pool is not None else None
        if elsewhere is not None:
            values = {"process_id": elsewhere, "generation": agents.c.generation + 1, "placed_at": datetime.now(UTC)}
            connection.execute(update(agents).where(agents.c.id == row.id).values(values))
    return str(rows[0].pool)


def _expire(connection: Connection, process_id: str) -> PoolProcess | None:
    """None where it has renewed its lease meanwhile, or is gone."""
    if not _lock_pool_of(connection, process_id):
        return None
    over = agent_processes.c.lease_until <= database_now(connection)
    gone = delete(agent_processes).where(_ONE, over).returning(*agent_processes.c)
    row = connection.execute(gone, {"of_process": process_id}).one_or_none()
    if row is None:
        return None
    _take_off(connection, process_id)
    return process_of(row)
