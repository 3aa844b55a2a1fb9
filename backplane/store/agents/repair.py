"""What a controller mends of agents: a next message that nobody opened, a turn whose time is up, a turn of an agent
that is terminated.

Whoever ends a turn opens the next one in the same transaction, so the first is there against faults: of a release that
knew no agents and ended a turn, or of somebody who changed rows by hand. Each look changes nothing, and each change
looks again under the agent's lock, so any number of controllers may do this at once.
"""

from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, select, text

from backplane.domain.runs import FINAL, Changed, RunError, RunStatus
from backplane.store.agents.placement.needs import WITH_MAIL
from backplane.store.agents.turns import lock_agent_of, locked_agent, open_next
from backplane.store.clock import database_now
from backplane.store.database import Database
from backplane.store.runs import RUN_COLUMNS, change_run, request_cancel, run_of
from backplane.store.tables import UtcDateTime, runs

_BROKEN = text(
    f"""{WITH_MAIL}
SELECT a.id FROM agents a LEFT JOIN runs r ON r.id = a.open_run_id
WHERE a.open_run_id IS NOT NULL
  AND (r.id IS NULL OR r.in_mailbox OR r.status IN ('completed', 'failed', 'cancelled'))
UNION
SELECT a.id FROM mail JOIN agents a ON a.id = mail.agent_id
WHERE a.open_run_id IS NULL AND a.process_id IS NOT NULL AND a.paused_at IS NULL AND a.terminated_at IS NULL
  AND EXISTS (
    SELECT 1 FROM runs WHERE agent_id = a.id AND in_mailbox AND (expires_at IS NULL OR expires_at > :now)
  )
LIMIT :most"""  # noqa: S608 - no values
).bindparams(bindparam("now", type_=UtcDateTime))
_EXPIRED = (
    select(runs.c.id)
    .where(
        runs.c.expires_at.is_not(None),
        runs.c.finished_at.is_(None),
        runs.c.expires_at <= bindparam("now", type_=runs.c.expires_at.type),
        runs.c.cancel_requested_at.is_(None),
    )
    .order_by(runs.c.expires_at)
)
_LEFT_BEHIND = text(
    f"""{WITH_MAIL}
SELECT r.id FROM agents a CROSS JOIN runs r
WHERE r.id = a.open_run_id AND a.open_run_id IS NOT NULL AND a.terminated_at IS NOT NULL
  AND r.status IN ('queued', 'waiting')
UNION
SELECT r.id FROM mail JOIN agents a ON a.id = mail.agent_id JOIN runs r ON r.agent_id = a.id
WHERE a.terminated_at IS NOT NULL AND r.in_mailbox AND r.parent_id IS NOT NULL
LIMIT :most"""  # noqa: S608 - no values
)
_LOCKED_RUN = select(*RUN_COLUMNS).where(runs.c.id == bindparam("of_run")).with_for_update()


class AgentRepair:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def broken(self, limit: int) -> list[str]:
        """Ids of agents whose open message is over, or whose next one could be opened and is not."""

        def read(connection: Connection) -> list[str]:
            values = {"now": datetime.now(UTC), "most": limit}
            return list(connection.scalars(_BROKEN, values))

        return await self._database.read(read)

    async def repair(self, agent_id: str) -> str | None:
        """The id of the message that is opened now, if one is."""

        def write(connection: Connection) -> str | None:
            agent = locked_agent(connection, agent_id)
            if agent is None:
                return None
            ended = agent.open_run_id
            if ended is not None:
                query = select(runs.c.status, runs.c.in_mailbox).where(runs.c.id == ended)
                run = connection.execute(query).one_or_none()
                if run is not None and not run.in_mailbox and RunStatus(run.status) not in FINAL:
                    return None
            return open_next(connection, agent_id, ended=ended)

        return await self._database.write(write)

    async def expired(self, limit: int) -> list[str]:
        """Ids of messages whose time is up, by the database's clock, and that nobody has asked to cancel."""

        def read(connection: Connection) -> list[str]:
            return list(connection.scalars(_EXPIRED.limit(limit), {"now": database_now(connection)}))

        return await self._database.read(read)

    async def left_behind(self, limit: int) -> list[str]:
        """Ids of messages to terminated agents that have to end: open ones that no worker carries out, and those in a
        mailbox for whose answer somebody waits."""

        def read(connection: Connection) -> list[str]:
            return list(connection.scalars(_LEFT_BEHIND, {"most": limit}))

        return await self._database.read(read)

    async def end(self, run_id: str, error: RunError) -> Changed | None:
        """Cancel a message for this reason. Of a running one the worker is asked to, as by a user. None: it is over, or
        is asked already."""

        def write(connection: Connection) -> Changed | None:
            lock_agent_of(connection, run_id)
            row = connection.execute(_LOCKED_RUN, {"of_run": run_id}).one_or_none()
            if row is None or RunStatus(row.status) in FINAL or row.cancel_requested_at is not None:
                return None
            run, now = run_of(row), datetime.now(UTC)
            if run.status is RunStatus.RUNNING:
                return request_cancel(connection, run_id, now), []
            values = {
                "status": RunStatus.CANCELLED,
                "cancel_requested_at": now,
                "finished_at": now,
                "error": error.as_dict(),
            }
            return change_run(connection, run, values, now)

        return await self._database.write(write)
