"""What users are shown of agents: what each does, and what keeps it from doing more. Nothing here locks or changes."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, func, select

from backplane.domain.agent_situation import AgentSituation, MailboxPlace
from backplane.domain.agents import Agent, AgentStatus, status_of
from backplane.domain.runs import Run
from backplane.store.agents.bell import PlaceBell
from backplane.store.agents.pools import AgentPools
from backplane.store.agents.processes import AgentProcesses
from backplane.store.agents.tables import agent_processes, agents
from backplane.store.agents.turns import IS_IN_MAILBOX, waiting_messages
from backplane.store.clock import database_now
from backplane.store.database import Database
from backplane.store.runs import run_from
from backplane.store.tables import runs

# A list shows many agents, and prompts and plans may be large.
_SHOWN = (
    runs.c.id,
    runs.c.user_id,
    runs.c.status,
    runs.c.priority,
    runs.c.created_at,
    runs.c.queued_at,
    runs.c.timeout_seconds,
    runs.c.max_retries,
    runs.c.error,
    runs.c.agent_id,
    runs.c.turn,
)


class AgentViews:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._pools = AgentPools(database)
        self._processes = AgentProcesses(database, PlaceBell())

    async def statuses(self, shown: Sequence[Agent]) -> dict[str, AgentStatus]:
        """What each of these agents does, by its id."""

        def read(connection: Connection) -> dict[str, AgentStatus]:
            open_runs = _open_runs(connection, shown)
            last = _last_runs(connection, [agent.id for agent in shown if agent.open_run_id is None])
            alive = _alive(connection, [agent.process_id for agent in shown if agent.process_id is not None])
            mail = _with_mail(connection, [agent.id for agent in shown if agent.open_run_id is None])
            return {
                agent.id: status_of(
                    agent,
                    open_runs.get(agent.open_run_id or ""),
                    last.get(agent.id),
                    is_alive=agent.process_id in alive,
                    has_mail=agent.id in mail,
                )
                for agent in shown
            }

        return await self._database.read(read) if shown else {}

    async def situation(self, agent: Agent) -> AgentSituation:
        status = (await self.statuses([agent]))[agent.id]

        pool = await self._pools.get(agent.pool)
        processes = [one for one in await self._processes.all() if one.process.pool == agent.pool]

        def read(connection: Connection) -> AgentSituation:
            open_run = _open_runs(connection, [agent]).get(agent.open_run_id or "")
            failed = _last_runs(connection, [agent.id]).get(agent.id) if status is AgentStatus.FAILED else None
            asked = _asked(connection, open_run) if open_run and status is AgentStatus.WAITING_FOR_AGENT else ()
            waiting, now = waiting_messages(connection, agent.id), database_now(connection)
            return AgentSituation(
                agent, status, pool, processes, open_run, waiting, now, failed_run=failed, asked=asked
            )

        return await self._database.read(read)

    async def place_in_mailbox(self, agent: Agent, turn: int) -> MailboxPlace:
        before = select(func.count()).where(runs.c.agent_id == agent.id, IS_IN_MAILBOX, runs.c.turn < turn)
        ahead = await self._database.read(lambda connection: connection.scalar(before))
        return MailboxPlace(ahead or 0, await self.situation(agent))

    async def turns(self, agent_id: str, *, after_turn: int, limit: int) -> list[Run]:
        """The agent's messages by turn, without what was said: each stream of the agent looks at every announcement."""
        query = select(*_SHOWN).where(runs.c.agent_id == agent_id, runs.c.turn > after_turn)
        query = query.order_by(runs.c.turn).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [run_from({**row._mapping, "prompt": ""}) for row in rows]

    async def agents_of(self, run_ids: Iterable[str]) -> dict[str, str]:
        """The agent of each of these runs that is a message to one."""
        query = select(runs.c.id, runs.c.agent_id).where(runs.c.id.in_(list(run_ids)), runs.c.agent_id.is_not(None))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.id: row.agent_id for row in rows}


def _open_runs(connection: Connection, of: Sequence[Agent]) -> dict[str, Run]:
    """By the run's id."""
    ids = [agent.open_run_id for agent in of if agent.open_run_id is not None]
    query = select(*_SHOWN).where(runs.c.id.in_(ids))
    return {row.id: run_from({**row._mapping, "prompt": ""}) for row in connection.execute(query)} if ids else {}


def _asked(connection: Connection, asking: Run) -> list[str]:
    query = (
        select(agents.c.name)
        .join(runs, runs.c.agent_id == agents.c.id)
        .where(runs.c.parent_id == asking.id, runs.c.finished_at.is_(None))
        .order_by(agents.c.name)
    )
    return list(connection.scalars(query))


def _with_mail(connection: Connection, agent_ids: Sequence[str]) -> set[str]:
    query = select(runs.c.agent_id).where(runs.c.agent_id.in_(agent_ids), IS_IN_MAILBOX).distinct()
    return set(connection.scalars(query)) if agent_ids else set()


def _last_runs(connection: Connection, agent_ids: Sequence[str]) -> dict[str, Run]:
    """Of each agent the message with the highest turn that is over, by the agent's id."""
    other = runs.alias()
    last = (
        select(func.max(other.c.turn))
        .where(other.c.agent_id == runs.c.agent_id, other.c.finished_at.is_not(None))
        .scalar_subquery()
    )
    query = select(*_SHOWN).where(runs.c.agent_id.in_(agent_ids), runs.c.turn == last)
    rows = connection.execute(query) if agent_ids else ()
    return {row.agent_id: run_from({**row._mapping, "prompt": ""}) for row in rows}


def _alive(connection: Connection, process_ids: Sequence[str]) -> set[str]:
    query = select(agent_processes.c.id).where(
        agent_processes.c.id.in_(process_ids), agent_processes.c.lease_until > database_now(connection)
    )
    return set(connection.scalars(query)) if process_ids else set()
