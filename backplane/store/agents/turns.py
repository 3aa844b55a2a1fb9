"""The turns of agents: which message of an agent is open, and how the next one comes to be.

One message of an agent is open at a time, `agents.open_run_id`; it is queued, running, or waits for something. All
others that are not over are in its mailbox. Whoever ends a message opens the next one here, in the same transaction,
under the lock of the agent's row. That row is locked before the run's (`lock_agent_of`, `lock_agents`), or two
transactions could wait for one another. What was opened is pushed after the commit (`run_actions.pushing`).
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, func, or_, select, text, update

from backplane.domain.agents import mailbox_error
from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import RunStatus
from backplane.errors import AgentTerminated
from backplane.store.agents.placement.sharing import must_give
from backplane.store.agents.tables import agents
from backplane.store.events import add_events, last_event_id
from backplane.store.tables import runs

IS_IN_MAILBOX = text("in_mailbox")  # as the index has it

_TURN_COLUMNS = (
    agents.c.id,
    agents.c.user_id,
    agents.c.pool,
    agents.c.turns,
    agents.c.open_run_id,
    agents.c.process_id,
    agents.c.paused_at,
    agents.c.terminated_at,
    agents.c.generation,
    agents.c.created_at,
    agents.c.number,
    agents.c.placed_at,
    agents.c.last_active_at,
)
_LOCKED_AGENT: Select[Any] = select(*_TURN_COLUMNS).where(agents.c.id == bindparam("of_agent")).with_for_update()
_AGENT_OF_RUN = select(runs.c.agent_id).where(runs.c.id == bindparam("of_run")).scalar_subquery()
_LOCK_AGENT_OF = select(agents.c.id).where(agents.c.id == _AGENT_OF_RUN).with_for_update()
UPDATE_AGENT = update(agents).where(agents.c.id == bindparam("of_agent"))
_UPDATE_RUN = update(runs).where(runs.c.id == bindparam("of_run"))
_WAITING_MESSAGES = select(func.count()).where(runs.c.agent_id == bindparam("of_agent"), IS_IN_MAILBOX)
_NEXT_SINCE = (
    select(runs.c.created_at)
    .where(runs.c.agent_id == bindparam("of_agent"), IS_IN_MAILBOX)
    .order_by(runs.c.turn)
    .limit(1)
)
_NEXT = (
    select(runs.c.id, runs.c.user_id, runs.c.attempt)
    .where(
        runs.c.agent_id == bindparam("of_agent"),
        IS_IN_MAILBOX,
        or_(runs.c.expires_at.is_(None), runs.c.expires_at > bindparam("now", type_=runs.c.expires_at.type)),
    )
    .order_by(runs.c.turn)
    .limit(1)
    .with_for_update()
)


def locked_agent(connection: Connection, agent_id: str) -> Row[Any] | None:
    """What decides about its turns, which nobody else changes until the transaction ends."""
    return connection.execute(_LOCKED_AGENT, {"of_agent": agent_id}).one_or_none()


def lock_agents(connection: Connection, agent_ids: Iterable[str]) -> None:
    """Lock these rows, in the order in which everybody locks them."""
    wanted = sorted(set(agent_ids))
    if wanted:
        connection.execute(select(agents.c.id).where(agents.c.id.in_(wanted)).order_by(agents.c.id).with_for_update())


def lock_agent_of(connection: Connection, run_id: str) -> None:
    """Lock the row of the agent that this run is a message to, if it is one."""
    connection.execute(_LOCK_AGENT_OF, {"of_run": run_id})


def waiting_messages(connection: Connection, agent_id: str) -> int:
    """How many messages are in its mailbox."""
    return connection.scalar(_WAITING_MESSAGES, {"of_agent": agent_id}) or 0


def first_in_mailbox_since(connection: Connection, agent_id: str) -> datetime | None:
    """When the message came that is next in its mailbox. None: the mailbox is empty."""
    return connection.scalar(_NEXT_SINCE, {"of_agent": agent_id})


def may_open(agent: Row[Any]) -> bool:
    """Whether a message may be opened now. `agent`: its locked row."""
    busy = (agent.open_run_id, agent.paused_at, agent.terminated_at)
    return agent.process_id is not None and all(one is None for one in busy)


def open_next(connection: Connection, agent_id: str, *, ended: str | None = None) -> str | None:
    """Open the message with the lowest turn in the agent's mailbox, if one may be opened. `ended`: the run that is over
    now: between two turns an agent may have to give its place to another one. Returns the id of what was opened."""
    agent = locked_agent(connection, agent_id)
    if agent is None:
        return None
    values: dict[str, Any] = {}
    if ended is not None and agent.open_run_id == ended:
        values = {"open_run_id": None, "last_active_at": datetime.now(UTC)}
        if must_give(connection, agent):
            connection.execute(UPDATE_AGENT, {"of_agent": agent_id, **values, "process_id": None})
            return None
    opened = _next(connection, agent, is_over=bool(values))
    if opened is not None:
        values = {"open_run_id": opened, "last_active_at": datetime.now(UTC)}
    if values:
        connection.execute(UPDATE_AGENT, {"of_agent": agent_id, **values})
    return opened


def _next(connection: Connection, agent: Row[Any], *, is_over: bool) -> str | None:
    if agent.open_run_id is not None and not is_over:
        return None
    if agent.process_id is None or agent.paused_at is not None or agent.terminated_at is not None:
        return None
    now = datetime.now(UTC)
    run = connection.execute(_NEXT, {"of_agent": agent.id, "now": now}).one_or_none()
    if run is None:
        return None
    values = {"in_mailbox": False, "status": RunStatus.QUEUED.value, "queued_at": now, "error": None}
    connection.execute(_UPDATE_RUN, {"of_run": run.id, **values})
    number = last_event_id(connection, run.id) + 1
    queued = encode(run.id, number, EventType.STATUS, {"status": RunStatus.QUEUED, "attempt": run.attempt}, now)
    add_events(connection, [queued], {run.id: run.user_id})
    return str(run.id)


def end_turn(connection: Connection, agent_id: str, run_id: str, changes: Mapping[str, Any]) -> None:
    """The agent's message is over: its changes of the agent are written, and the next one is opened. The agent's row is
    locked already. `changes`: its new `state`, its `summary`."""
    values = dict(changes)
    if "state" in values:
        values["state_version"] = agents.c.state_version + 1
    if values:
        connection.execute(update(agents).where(agents.c.id == agent_id).values(values))
    open_next(connection, agent_id, ended=run_id)


def reopened(connection: Connection, agent_id: str, run_id: str) -> Mapping[str, Any]:
    """A turn that is over is to go on. Returns the columns with which it goes on: as the open one, where it may be, or
    from the mailbox, where it is the next, since it keeps its turn. Raises AgentTerminated."""
    agent = locked_agent(connection, agent_id)
    if agent is None or agent.terminated_at is not None:
        raise AgentTerminated(f"run {run_id} is a message to agent {agent_id}, which is terminated; make a fork of it")
    if may_open(agent):
        values = {"open_run_id": run_id, "last_active_at": datetime.now(UTC)}
        connection.execute(UPDATE_AGENT, {"of_agent": agent_id, **values})
        return {}
    return {"in_mailbox": True, "status": RunStatus.WAITING, "queued_at": None, "error": mailbox_error().as_dict()}


def first_events(run_id: str, created_at: datetime, *, is_open: bool, origin: Mapping[str, Any] | None) -> list[Event]:
    """The events of a new message: that it was made, and that it is queued or in the mailbox."""
    created = {"status": "created", "attempt": 1} | ({"origin": origin} if origin else {})
    second: dict[str, Any] = {"status": RunStatus.QUEUED, "attempt": 1}
    if not is_open:
        second = {"status": RunStatus.WAITING, "attempt": 1, "error": mailbox_error().as_dict()}
    bodies = (created, second)
    return [encode(run_id, number, EventType.STATUS, body, created_at) for number, body in enumerate(bodies, 1)]
