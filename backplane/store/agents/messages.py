"""Messages to agents: runs with a turn of their own in the agent's mailbox.

A turn is given under the lock of the agent's row. So the order in which messages were committed is the order of their
turns, and that in which the agent comes to them.
"""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, Row, Text, func, insert, select, type_coerce
from sqlalchemy.exc import IntegrityError

from backplane.domain.agents import AddedMessage, AgentPlace, mailbox_error
from backplane.domain.runs import Run, RunStatus
from backplane.errors import MailboxFull
from backplane.store.agents.agents import no_agent, terminated
from backplane.store.agents.bell import PlaceBell
from backplane.store.agents.processes import place
from backplane.store.agents.turns import (
    UPDATE_AGENT,
    first_events,
    locked_agent,
    may_open,
    open_next,
    waiting_messages,
)
from backplane.store.database import Database
from backplane.store.events import add_events
from backplane.store.runs import RUN_COLUMNS, Runs, run_of, values_of
from backplane.store.tables import runs

MAILBOX_RETRY_SECONDS = 5
"""When a message that a full mailbox refused may be sent again: some turns end in that time."""

_SIZE = func.length(runs.c.prompt) + sum(
    func.coalesce(func.length(type_coerce(column, Text)), 0) for column in (runs.c.input, runs.c.result)
)


class AgentMessages:
    def __init__(self, database: Database, bell: PlaceBell) -> None:
        self._database = database
        self._bell = bell

    async def add(self, run: Run, *, mailbox_max: int, idempotency: tuple[str, str] | None = None) -> AddedMessage:
        """Put a message into the mailbox of the agent that `run.agent_id` names, whose user is `run.user_id`, and open
        it if it is the next. An agent without a process is placed where there is room. `run` needs no turn and no
        status.

        Answers the message that the same key and digest made before, where there is one. Raises NotFound,
        AgentTerminated, MailboxFull when `mailbox_max` messages wait already, and IdempotencyKeyReused."""
        agent_id = run.agent_id or ""

        def write(connection: Connection) -> tuple[AddedMessage, str | None]:
            agent = _addressed(connection, run)
            added = _add(connection, agent, run, mailbox_max=mailbox_max, idempotency=idempotency)
            return added, agent.pool if agent.process_id is None else None

        try:
            if idempotency and (earlier := await self._made_before(run.user_id, idempotency)) is not None:
                return AddedMessage(earlier, is_new=False)
            added, pool = await self._database.write(write)
        except IntegrityError:
            earlier = await self._made_before(run.user_id, idempotency) if idempotency else None
            if earlier is None:
                raise
            return AddedMessage(earlier, is_new=False)
        if pool is None:
            return added
        # The place is taken in a transaction of its own, since the pool's row is locked before the agent's. A crash in
        # between leaves an agent that needs a process, as one for which there is no room.
        placed: AgentPlace | None = await self._database.write(lambda connection: place(connection, agent_id))
        await self._bell.ring(pool, placed.process_id if placed else "")
        if placed is None:
            return added
        current = await Runs(self._database).find(run.id) if placed.opened == run.id else None
        return replace(added, run=current or added.run, opened=placed.opened, placed=placed)

    async def _made_before(self, user_id: str, idempotency: tuple[str, str]) -> Run | None:
        return await Runs(self._database).made_before(user_id, *idempotency)

    async def of_agent(
        self, agent_id: str, *, after_turn: int | None = None, limit: int = 50, newest_first: bool = False
    ) -> list[Run]:
        """The agent's messages by turn. `after_turn`: the turn of the last one of the page before."""
        turn = runs.c.turn
        query = select(*RUN_COLUMNS).where(runs.c.agent_id == agent_id).limit(limit)
        query = query.order_by(turn.desc() if newest_first else turn)
        if after_turn is not None:
            query = query.where(turn < after_turn if newest_first else turn > after_turn)
        return [run_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def page(
        self, agent_id: str, *, after_turn: int | None, limit: int, newest_first: bool, most_bytes: int
    ) -> tuple[list[Run], bool]:
        """As `of_agent`, as many as have about so many bytes, and one at least; and whether there are more."""
        query = select(_SIZE).where(runs.c.agent_id == agent_id).limit(limit + 1)
        query = query.order_by(runs.c.turn.desc() if newest_first else runs.c.turn)
        if after_turn is not None:
            query = query.where(runs.c.turn < after_turn if newest_first else runs.c.turn > after_turn)
        sizes = await self._database.read(lambda connection: connection.scalars(query).all())
        fitting = sum(total <= most_bytes for total in accumulate(sizes[:limit]))
        count = max(fitting, min(1, len(sizes)))
        found = await self.of_agent(agent_id, after_turn=after_turn, limit=count, newest_first=newest_first)
        return found, len(sizes) > count

    async def of_turn(self, agent_id: str, turn: int) -> Run | None:
        query = select(*RUN_COLUMNS).where(runs.c.agent_id == agent_id, runs.c.turn == turn)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return run_of(row) if row is not None else None

    async def sent(self, user_id: str, sender_id: str, step_id: str) -> Run | None:
        """The message that this step of this run has sent (`RunTransaction.send_message`)."""
        query = select(*RUN_COLUMNS).where(
            runs.c.user_id == user_id, runs.c.idempotency_key == sending_key(sender_id, step_id)
        )
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return run_of(row) if row is not None else None


def sending_key(sender_id: str, step_id: str) -> str:
    """The idempotency key of what a step of a run sends. No key of a request can be the same: they have no line
    breaks."""
    return f"sent\n{sender_id}\n{step_id}"


def send(connection: Connection, run: Run, *, sender_id: str, step_id: str, mailbox_max: int) -> None:
    """A step of a run sends this message, once: again, it changes nothing. The agent's row is locked already. Raises
    NotFound, AgentTerminated, MailboxFull."""
    key = sending_key(sender_id, step_id)
    there = select(runs.c.id).where(runs.c.user_id == run.user_id, runs.c.idempotency_key == key)
    if connection.execute(there).one_or_none() is None:
        _add(connection, _addressed(connection, run), run, mailbox_max=mailbox_max, idempotency=(key, ""))


def _addressed(connection: Connection, run: Run) -> Row[Any]:
    """The locked row of the agent. Raises NotFound, AgentTerminated."""
    agent = locked_agent(connection, run.agent_id or "")
    if agent is None or agent.user_id != run.user_id:
        raise no_agent(run.agent_id or "")
    if agent.terminated_at is not None:
        raise terminated(agent.id)
    return agent


def _add(
    connection: Connection,
    agent: Row[Any],
    run: Run,
    *,
    mailbox_max: int,
    idempotency: tuple[str, str] | None,
) -> AddedMessage:
    waiting = waiting_messages(connection, agent.id)
    if waiting >= mailbox_max:
        raise MailboxFull(
            f"{waiting:,} messages wait for agent {agent.id}, and {mailbox_max:,} may: let it come to some, or remove "
            "some",
            retry_after=MAILBOX_RETRY_SECONDS,
        )
    is_open = not waiting and may_open(agent)
    status = RunStatus.QUEUED if is_open else RunStatus.WAITING
    made = replace(
        run,
        status=status,
        turn=agent.turns + 1,
        in_mailbox=not is_open,
        queued_at=run.created_at if is_open else None,
        error=None if is_open else mailbox_error(),
    )
    connection.execute(insert(runs), values_of(made, status, idempotency))
    new_events = first_events(made.id, made.created_at, is_open=is_open, origin=made.origin)
    add_events(connection, new_events, {made.id: made.user_id})
    values: dict[str, Any] = {"turns": agent.turns + 1}
    # Of an agent without a place it says since when it waits for one, whatever comes meanwhile.
    values |= {"last_active_at": datetime.now(UTC)} if agent.process_id is not None else {}
    values |= {"open_run_id": made.id} if is_open else {}
    connection.execute(UPDATE_AGENT, {"of_agent": agent.id, **values})
    opened = made.id if is_open else open_next(connection, agent.id)
    return AddedMessage(made, is_new=True, opened=opened, events=tuple(new_events))
