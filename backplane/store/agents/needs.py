"""Which agents need a process and have none: those that have something to do, and those that were just made.

Agents that sleep cost nothing here: the look goes from one agent with a message in its mailbox to the next, by an
index, and not over all agents, and passes over the other messages of each. Runs without an agent cost nothing either:
where a CROSS JOIN stands, SQLite reads the agents before the runs.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, text

from backplane.store.tables import UtcDateTime

SLEEPS_LONG = timedelta(seconds=60)
"""A turn that sleeps for longer does not need its agent's place meanwhile."""
NEW_FOR = timedelta(seconds=600)
"""An agent that was made so short a time ago and has had no process yet gets one, though it has nothing to do: whoever
makes an agent is about to send it a message. It takes no other agent's place."""

WITH_MAIL = """
WITH RECURSIVE mail (agent_id) AS (
  SELECT (SELECT agent_id FROM runs WHERE in_mailbox ORDER BY agent_id LIMIT 1)
  UNION ALL
  SELECT (SELECT agent_id FROM runs WHERE in_mailbox AND agent_id > mail.agent_id ORDER BY agent_id LIMIT 1)
  FROM mail WHERE mail.agent_id IS NOT NULL
)"""
_NEEDING = f"""{WITH_MAIL}, needing AS (
  SELECT a.id, a.pool, a.number, a.last_active_at,
    (SELECT priority FROM runs WHERE agent_id = a.id AND in_mailbox ORDER BY turn LIMIT 1) AS priority
  FROM mail JOIN agents a ON a.id = mail.agent_id
  WHERE a.process_id IS NULL AND a.open_run_id IS NULL AND a.paused_at IS NULL AND a.terminated_at IS NULL
  UNION ALL
  SELECT a.id, a.pool, a.number, a.last_active_at, r.priority
  FROM agents a CROSS JOIN runs r
  WHERE r.id = a.open_run_id AND a.open_run_id IS NOT NULL AND a.process_id IS NULL AND a.terminated_at IS NULL
    AND (r.status = 'running' OR (r.status = 'queued' AND r.queued_at < :soon))
  UNION ALL
  SELECT a.id, a.pool, a.number, a.last_active_at, -1 FROM agents a
  WHERE a.generation = 0 AND a.terminated_at IS NULL AND a.created_at > :new_since AND a.process_id IS NULL
    AND a.open_run_id IS NULL AND a.paused_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM runs WHERE agent_id = a.id AND in_mailbox)
)"""  # noqa: S608 - no values
_TIMES = (bindparam("soon", type_=UtcDateTime), bindparam("new_since", type_=UtcDateTime))
_MOST_URGENT = text(
    f"{_NEEDING} SELECT id, number, priority FROM needing WHERE pool = :pool "  # noqa: S608
    "ORDER BY priority DESC, last_active_at, id LIMIT :most"
).bindparams(*_TIMES)
_COUNTED = text(f"{_NEEDING} SELECT pool, count(*) AS unplaced FROM needing GROUP BY pool").bindparams(*_TIMES)  # noqa: S608


class Needing(NamedTuple):
    """`has_work`: it has something to do, so another agent that is idle may lose its place to it."""

    agent_id: str
    number: int
    has_work: bool


def most_urgent(connection: Connection, pool: str, now: datetime, limit: int) -> list[Needing]:
    """Up to `limit` of these agents of a pool: by the priority of what they have to do, then those that have been idle
    for longest, then those that have nothing to do."""
    rows = connection.execute(_MOST_URGENT, {"pool": pool, "most": limit, **_times(now)})
    return [Needing(row.id, row.number, row.priority >= 0) for row in rows]


def counted(connection: Connection, now: datetime) -> dict[str, int]:
    """How many there are, by pool."""
    rows: list[Row[Any]] = list(connection.execute(_COUNTED, _times(now)))
    return {row.pool: row.unplaced for row in rows}


def _times(now: datetime) -> dict[str, datetime]:
    return {"soon": now + SLEEPS_LONG, "new_since": now - NEW_FOR}
