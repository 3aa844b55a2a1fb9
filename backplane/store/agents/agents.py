"""Agents: made, looked up, changed, paused, terminated."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from backplane.domain.agents import Agent, AgentAtTurn, AgentState
from backplane.domain.runs import new_run_id
from backplane.errors import AgentBusy, AgentTerminated, Conflict, NotFound, TooLarge
from backplane.store.agents.bell import PlaceBell
from backplane.store.agents.pools import locked_pool, no_pool
from backplane.store.agents.processes import place_for
from backplane.store.agents.tables import agent_pools, agents
from backplane.store.agents.turns import IS_IN_MAILBOX, open_next, waiting_messages
from backplane.store.database import Database
from backplane.store.tables import id_begins_with, runs

NUMBERS_AT_ONCE = 500

AGENT_COLUMNS = [column for column in agents.c if column.name not in ("state", "summary")]
_ONE = select(*AGENT_COLUMNS).where(agents.c.id == bindparam("of_agent"))
_AT_TURN = (
    select(agents, agent_pools.c.role)
    .join(agent_pools, agent_pools.c.name == agents.c.pool)
    .where(agents.c.id == bindparam("of_agent"))
)
_USERS = _ONE.where(agents.c.user_id == bindparam("of_user"))
_LIVES = agents.c.terminated_at.is_(None)


def agent_of(row: Row[Any]) -> Agent:
    return Agent(**{column.name: row._mapping[column.name] for column in AGENT_COLUMNS})


def no_agent(agent_id: str) -> NotFound:
    return NotFound(f"there is no agent {agent_id} of yours; GET /api/v1/agents lists those there are")


class Agents:
    def __init__(self, database: Database, bell: PlaceBell) -> None:
        self._database = database
        self._bell = bell

    async def spawn(
        self,
        user_id: str,
        pool: str,
        name: str,
        *,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        most: int,
    ) -> tuple[Agent, bool]:
        """Make an agent, and place it where a process has room; whether it is new. The user's agent of this name in the
        pool that is not terminated is returned as it is. Raises NotFound when there is no such pool, and TooLarge when
        the user has `most` agents, those that were terminated too."""

        def write(connection: Connection) -> tuple[Agent, bool]:
            locked = locked_pool(connection, pool)
            if locked is None:
                raise no_pool(pool)
            named = select(*AGENT_COLUMNS).where(
                agents.c.user_id == user_id, agents.c.pool == pool, agents.c.name == name, _LIVES
            )
            if (row := connection.execute(named).one_or_none()) is not None:
                return agent_of(row), False
            count = connection.scalar(select(func.count()).where(agents.c.user_id == user_id)) or 0
            if count >= most:
                raise TooLarge(
                    f"you have {count:,} agents, with those that were terminated, and {most:,} may be: terminate and "
                    "delete some that are not needed"
                )
            now, agent_id = datetime.now(UTC), new_run_id()
            number = _free_number(connection, pool, locked.free_number)
            process_id = place_for(connection, locked, agent_id, number)
            values = {
                "id": agent_id,
                "user_id": user_id,
                "pool": pool,
                "name": name,
                "number": number,
                "created_at": now,
                "last_active_at": now,
                "state_version": 0,
                "model": model,
                "metadata": dict(metadata or {}),
                "turns": 0,
                "process_id": process_id,
                "generation": 0 if process_id is None else 1,
                "placed_at": None if process_id is None else now,
                "state": dict(state or {}),
            }
            return agent_of(connection.execute(insert(agents).values(values).returning(*AGENT_COLUMNS)).one()), True

        agent, is_new = await self._database.write(write)
        if is_new:
            await self._bell.ring(pool, agent.process_id or "")
        return agent, is_new

    async def get(self, user_id: str, agent_id: str) -> Agent:
        """Raises NotFound, also for another user's agent."""

        def read(connection: Connection) -> Row[Any] | None:
            return connection.execute(_USERS, {"of_agent": agent_id, "of_user": user_id}).one_or_none()

        row = await self._database.read(read)
        if row is None:
            raise no_agent(agent_id)
        return agent_of(row)

    async def find(self, agent_id: str) -> Agent | None:
        """The agent, whoever owns it."""
        row = await self._database.read(
            lambda connection: connection.execute(_ONE, {"of_agent": agent_id}).one_or_none()
        )
        return agent_of(row) if row is not None else None

    async def named(self, user_id: str, name: str, pool: str | None = None) -> list[Agent]:
        """The user's agents of this name that are not terminated: one a pool at most."""
        query = select(*AGENT_COLUMNS).where(agents.c.user_id == user_id, agents.c.name == name, _LIVES)
        if pool is not None:
            query = query.where(agents.c.pool == pool)
        query = query.order_by(agents.c.pool)
        return [agent_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def page(
        self,
        user_id: str,
        *,
        pool: str | None = None,
        name: str | None = None,
        beginning: str | None = None,
        terminated: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[Agent]:
        """Oldest first; `terminated`: these too. `beginning`: only ids that begin so. `after` is the id of the last
        agent of the page before."""
        query = select(*AGENT_COLUMNS).where(agents.c.user_id == user_id).order_by(agents.c.id).limit(limit)
        if pool is not None:
            query = query.where(agents.c.pool == pool)
        if name is not None:
            query = query.where(agents.c.name == name)
        if beginning:
            query = query.where(id_begins_with(agents.c.id, beginning))
        if not terminated:
            query = query.where(_LIVES)
        if after is not None:
            query = query.where(agents.c.id > after)
        return [agent_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def placed_in(self, process_id: str) -> list[Agent]:
        """The agents of a process, by number."""
        query = select(*AGENT_COLUMNS).where(agents.c.process_id == process_id).order_by(agents.c.number)
        return [agent_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def patch(self, user_id: str, agent_id: str, values: Mapping[str, Any]) -> Agent:
        """Change `model` or `metadata`. Raises NotFound, AgentTerminated."""

        def write(connection: Connection) -> Agent:
            _living(connection, user_id, agent_id)
            return _changed(connection, agent_id, values)

        return await self._database.write(write)

    async def state(self, user_id: str, agent_id: str) -> AgentState:
        """Raises NotFound."""
        query = select(agents.c.state, agents.c.state_version, agents.c.summary).where(
            agents.c.id == agent_id, agents.c.user_id == user_id
        )
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise no_agent(agent_id)
        return AgentState(row.state, row.state_version, row.summary)

    async def at_turn(self, agent_id: str) -> AgentAtTurn | None:
        """The agent, whoever owns it, with all that a turn of it begins with."""
        row = await self._database.read(
            lambda connection: connection.execute(_AT_TURN, {"of_agent": agent_id}).one_or_none()
        )
        if row is None:
            return None
        return AgentAtTurn(agent_of(row), row.role, AgentState(row.state, row.state_version, row.summary))

    async def put_state(self, user_id: str, agent_id: str, state: Any, version: int | None = None) -> AgentState:
        """Replace the state. `version`: the one that the caller has read. Raises NotFound, AgentTerminated, AgentBusy
        while a message is open, and Conflict when the state has another version."""

        def write(connection: Connection) -> AgentState:
            agent = _living(connection, user_id, agent_id)
            if agent.open_run_id is not None:
                raise AgentBusy(
                    f"agent {agent_id} carries out run {agent.open_run_id}, which may change its state; wait until "
                    "that is over, or pause the agent first"
                )
            if version is not None and version != agent.state_version:
                raise Conflict(
                    f"the state of agent {agent_id} has version {agent.state_version}, and you named {version}: read "
                    "it again"
                )
            changed = {"state": state, "state_version": agent.state_version + 1}
            statement = update(agents).where(agents.c.id == agent_id).values(changed).returning(agents.c.summary)
            return AgentState(state, agent.state_version + 1, connection.scalar(statement))

        return await self._database.write(write)

    async def pause(self, user_id: str, agent_id: str) -> Agent:
        """From now on no message is opened; the open one goes on. Raises NotFound, AgentTerminated."""

        def write(connection: Connection) -> Agent:
            agent = _living(connection, user_id, agent_id)
            if agent.paused_at is not None:
                return agent
            return _changed(connection, agent_id, {"paused_at": datetime.now(UTC)})

        return await self._database.write(write)

    async def resume(self, user_id: str, agent_id: str) -> tuple[Agent, str | None]:
        """The agent, and the id of the message that was opened by that. Raises NotFound, AgentTerminated."""

        def write(connection: Connection) -> tuple[Agent, str | None]:
            _living(connection, user_id, agent_id)
            _changed(connection, agent_id, {"paused_at": None})
            opened = open_next(connection, agent_id)
            return agent_of(connection.execute(_ONE, {"of_agent": agent_id}).one()), opened

        return await self._database.write(write)

    async def terminate(self, user_id: str, agent_id: str) -> Agent:
        """End the agent: no message is opened any more, and it has no process. What is open goes on until somebody
        cancels it (`RunActions.terminate`); what is in the mailbox stays there. Again changes nothing. Raises
        NotFound."""

        def write(connection: Connection) -> Agent:
            found = connection.execute(_USERS, {"of_agent": agent_id, "of_user": user_id}).one_or_none()
            if found is None:
                raise no_agent(agent_id)
            locked = locked_pool(connection, found.pool)
            agent = agent_of(connection.execute(_ONE.with_for_update(), {"of_agent": agent_id}).one())
            if agent.terminated_at is not None:
                return agent
            if locked is not None and agent.number < locked.free_number:
                free = update(agent_pools).where(agent_pools.c.name == agent.pool)
                connection.execute(free.values(free_number=agent.number))
            return _changed(connection, agent_id, {"terminated_at": datetime.now(UTC), "process_id": None})

        return await self._database.write(write)

    async def delete(self, user_id: str, agent_id: str) -> None:
        """Remove the row of a terminated agent; its runs stay. Raises NotFound, and Conflict while it is not
        terminated, has a message open, or messages in its mailbox."""

        def write(connection: Connection) -> None:
            _check_deletable(connection, user_id, agent_id)
            connection.execute(delete(agents).where(agents.c.id == agent_id))

        await self._database.write(write)

    async def check_deletable(self, user_id: str, agent_id: str) -> None:
        """Raises what `delete` would raise. What passes once, passes: a terminated agent gets no message any more."""
        await self._database.write(lambda connection: _check_deletable(connection, user_id, agent_id))

    async def mailbox(self, agent_id: str, limit: int = 50) -> list[str]:
        """Ids of the runs in the agent's mailbox, next first."""
        query = select(runs.c.id).where(runs.c.agent_id == agent_id, IS_IN_MAILBOX).order_by(runs.c.turn).limit(limit)
        return list(await self._database.read(lambda connection: connection.scalars(query).all()))

    async def awaited_mail(self, agent_id: str) -> list[str]:
        """Ids of the runs in the agent's mailbox for whose answer somebody waits."""
        query = select(runs.c.id).where(runs.c.agent_id == agent_id, IS_IN_MAILBOX, runs.c.parent_id.is_not(None))
        return list(await self._database.read(lambda connection: connection.scalars(query.order_by(runs.c.turn)).all()))

    async def mailbox_size(self, agent_id: str) -> int:
        return await self._database.read(lambda connection: waiting_messages(connection, agent_id))


def _users_locked(connection: Connection, user_id: str, agent_id: str) -> Agent:
    """Raises NotFound."""
    values = {"of_agent": agent_id, "of_user": user_id}
    row = connection.execute(_USERS.with_for_update(), values).one_or_none()
    if row is None:
        raise no_agent(agent_id)
    return agent_of(row)


def _living(connection: Connection, user_id: str, agent_id: str) -> Agent:
    """The user's agent, locked. Raises NotFound, AgentTerminated."""
    agent = _users_locked(connection, user_id, agent_id)
    if agent.terminated_at is not None:
        raise terminated(agent_id)
    return agent


def _check_deletable(connection: Connection, user_id: str, agent_id: str) -> None:
    agent = _users_locked(connection, user_id, agent_id)
    if agent.terminated_at is None:
        raise Conflict(f"agent {agent_id} is not terminated; POST /api/v1/agents/{agent_id}/terminate first")
    if agent.open_run_id is not None:
        raise AgentBusy(f"run {agent.open_run_id} of agent {agent_id} is not over; cancel it first")
    if count := waiting_messages(connection, agent_id):
        raise Conflict(f"{count} messages are in the mailbox of agent {agent_id}; remove them first")


def terminated(agent_id: str) -> AgentTerminated:
    return AgentTerminated(f"agent {agent_id} is terminated; spawn another one")


def _changed(connection: Connection, agent_id: str, values: Mapping[str, Any]) -> Agent:
    statement = update(agents).where(agents.c.id == agent_id).values(dict(values)).returning(*AGENT_COLUMNS)
    return agent_of(connection.execute(statement).one())


def _free_number(connection: Connection, pool: str, lowest: int) -> int:
    """Take the lowest number that no agent of the pool has. None below `lowest` is free."""
    number = lowest
    while True:
        query = (
            select(agents.c.number)
            .where(agents.c.pool == pool, _LIVES, agents.c.number >= number)
            .order_by(agents.c.number)
            .limit(NUMBERS_AT_ONCE)
        )
        taken = connection.scalars(query).all()
        for one in taken:
            if one != number:
                break
            number += 1
        else:
            if len(taken) == NUMBERS_AT_ONCE:
                continue
        connection.execute(update(agent_pools).where(agent_pools.c.name == pool).values(free_number=number + 1))
        return number
