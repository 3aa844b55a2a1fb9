"""Which agents have something to do and no process.

Agents that sleep cost nothing here: the look goes from one agent with a message in its mailbox to the next, by an
index, and not over all agents, and passes over the other messages of each.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, text

from backplane.store.tables import UtcDateTime

SLEEPS_LONG = timedelta(seconds=60)
"""A turn that sleeps for longer does not need its agent's place meanwhile."""

WITH_MAIL = """
WITH RECURSIVE mail (agent_id) AS (
  SELECT (SELECT agent_id FROM runs WHERE in_mailbox ORDER BY agent_id LIMIT 1)
  UNION ALL
  SELECT (SELECT agent_id FROM runs WHERE in_mailbox AND agent_id > mail.agent_id ORDER BY agent_id LIMIT 1)
  FROM mail WHERE mail.agent_id IS NOT NULL
)"""
_NEEDING = f"""{WITH_MAIL}, needing AS (
  SELECT a.id, a.pool, a.last_active_at,
    (SELECT priority FROM runs WHERE agent_id = a.id AND in_mailbox ORDER BY turn LIMIT 1) AS priority
  FROM mail JOIN agents a ON a.id = mail.agent_id
  WHERE a.process_id IS NULL AND a.open_run_id IS NULL AND a.paused_at IS NULL AND a.terminated_at IS NULL
  UNION ALL
  SELECT a.id, a.pool, a.last_active_at, r.priority
  FROM agents a JOIN runs r ON r.id = a.open_run_id
  WHERE a.open_run_id IS NOT NULL AND a.process_id IS NULL AND a.terminated_at IS NULL
    AND (r.status = 'running' OR (r.status = 'queued' AND r.queued_at < :soon))
)"""  # noqa: S608 - no values
_MOST_URGENT = text(
    f"{_NEEDING} SELECT id FROM needing WHERE pool = :pool ORDER BY priority DESC, last_active_at, id LIMIT :most"  # noqa: S608
).bindparams(bindparam("soon", type_=UtcDateTime))
_COUNTED = text(f"{_NEEDING} SELECT pool, count(*) AS unplaced FROM needing GROUP BY pool").bindparams(  # noqa: S608
    bindparam("soon", type_=UtcDateTime)
)


def most_urgent(connection: Connection, pool: str, now: datetime, limit: int) -> list[str]:
    """The ids of up to `limit` of these agents of a pool: by the priority of what they have to do, then those that have
    been idle for longest."""
    values = {"pool": pool, "soon": now + SLEEPS_LONG, "most": limit}
    return [row.id for row in connection.execute(_MOST_URGENT, values)]


def counted(connection: Connection, now: datetime) -> dict[str, int]:
    """How many there are, by pool."""
    rows: list[Row[Any]] = list(connection.execute(_COUNTED, {"soon": now + SLEEPS_LONG}))
    return {row.pool: row.unplaced for row in rows}
