"""Which agents need a process and have none: those that have something to do, and those that were just made.

Agents that sleep cost nothing here: the look goes from one agent with a message in its mailbox to the next, by an
index, and not over all agents, and passes over the other messages of each. Runs without an agent cost nothing either:
where a CROSS JOIN stands, SQLite reads the agents before the runs.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, Row, String, TextualSelect, bindparam, text

from backplane.domain.agent_places import PLACE_FOR
from backplane.domain.agents import Ranges
from backplane.store.tables import UtcDateTime

SLEEPS_LONG = timedelta(seconds=60)
"""A turn that sleeps for longer does not need its agent's place meanwhile."""
NEW_FOR = timedelta(seconds=600)
"""An agent that was made so short a time ago and has had no process yet gets one, though it has nothing to do: whoever
makes an agent is about to send it a message. It takes no other agent's place."""
PROCESS_STARTS = timedelta(seconds=2)
"""So long an agent with something to do waits for a new process before it takes the place of an agent that is idle. A
process starts in about this time on one machine. In a cluster it takes longer, but to lose a place costs an idle agent
no more than some milliseconds at its next message."""

WITH_MAIL = """
WITH RECURSIVE mail (agent_id) AS (
  SELECT (SELECT agent_id FROM runs WHERE in_mailbox ORDER BY agent_id LIMIT 1)
  UNION ALL
  SELECT (SELECT agent_id FROM runs WHERE in_mailbox AND agent_id > mail.agent_id ORDER BY agent_id LIMIT 1)
  FROM mail WHERE mail.agent_id IS NOT NULL
)"""
_NEEDING = f"""{WITH_MAIL}, needing AS (
  SELECT a.id, a.user_id, a.pool, a.number, a.last_active_at,
    (SELECT priority FROM runs WHERE agent_id = a.id AND in_mailbox ORDER BY turn LIMIT 1) AS priority,
    (SELECT created_at FROM runs WHERE agent_id = a.id AND in_mailbox ORDER BY turn LIMIT 1) AS work_since
  FROM mail JOIN agents a ON a.id = mail.agent_id
  WHERE a.process_id IS NULL AND a.open_run_id IS NULL AND a.paused_at IS NULL AND a.terminated_at IS NULL
  UNION ALL
  SELECT a.id, a.user_id, a.pool, a.number, a.last_active_at, r.priority, coalesce(r.queued_at, r.created_at)
  FROM agents a CROSS JOIN runs r
  WHERE r.id = a.open_run_id AND a.open_run_id IS NOT NULL AND a.process_id IS NULL AND a.terminated_at IS NULL
    AND (r.status = 'running' OR (r.status = 'queued' AND r.queued_at < :soon))
  UNION ALL
  SELECT a.id, a.user_id, a.pool, a.number, a.last_active_at, -1, NULL FROM agents a
  WHERE a.generation = 0 AND a.terminated_at IS NULL AND a.created_at > :new_since AND a.process_id IS NULL
    AND a.open_run_id IS NULL AND a.paused_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM runs WHERE agent_id = a.id AND in_mailbox)
)"""  # noqa: S608 - no values
_TIMES = (bindparam("soon", type_=UtcDateTime), bindparam("new_since", type_=UtcDateTime))
_LATE = 100
"""More than any priority."""
_COUNTED = text(f"{_NEEDING} SELECT pool, count(*) AS unplaced FROM needing GROUP BY pool").bindparams(*_TIMES)  # noqa: S608


class Needing(NamedTuple):
    """The first three are their order: the lowest comes first. `share`: how many places its user has when it has got
    one, and those of the user's that come before it. `waits_since`: when it got something to do, or was last at work.
    `work_since`: since when it has had something to do. None: it has nothing to do."""

    hurry: int
    share: int
    waits_since: datetime
    agent_id: str
    user_id: str
    number: int
    work_since: datetime | None


def most_urgent(
    connection: Connection, pool: str, now: datetime, limit: int, numbers: Ranges | None = None
) -> list[Needing]:
    """Up to `limit` of these agents of a pool, those with these numbers (None: with any): first who waits for longer
    than PLACE_FOR, then by the priority of what they have to do, then those that have nothing to do. Among equals,
    users with few places come first, so that no user's agents wait for all of another one's."""
    values = {"pool": pool, "most": limit, "late": now - PLACE_FOR, **_times(now)}
    rows = connection.execute(_most_urgent(numbers), values)
    return [
        Needing(-row.urgency, row.share, row.waits_since, row.id, row.user_id, row.number, row.work_since)
        for row in rows
    ]


def _most_urgent(numbers: Ranges | None) -> TextualSelect:
    taken = " OR ".join(f"number BETWEEN {first} AND {last}" for first, last in numbers or ())
    return (
        text(
            f"""{_NEEDING}, waiting AS (
  SELECT id, user_id, number, priority, work_since,
    CASE WHEN work_since > last_active_at THEN work_since ELSE last_active_at END AS waits_since
  FROM needing WHERE pool = :pool{f" AND ({taken})" if taken else ""}
), urgent AS (
  SELECT waiting.*,
    CASE WHEN work_since IS NOT NULL AND waits_since <= :late THEN {_LATE} ELSE priority END AS urgency
  FROM waiting
), placed AS (
  SELECT user_id, count(*) AS places FROM agents WHERE pool = :pool AND process_id IS NOT NULL GROUP BY user_id
), shared AS (
  SELECT urgent.*, coalesce(placed.places, 0)
    + row_number() OVER (PARTITION BY urgent.user_id ORDER BY urgency DESC, waits_since, id) AS share
  FROM urgent LEFT JOIN placed ON placed.user_id = urgent.user_id
)
SELECT id, user_id, number, work_since, waits_since, urgency, share FROM shared
ORDER BY urgency DESC, share, waits_since, id LIMIT :most"""  # noqa: S608 - no values but whole numbers
        )
        .bindparams(*_TIMES, bindparam("late", type_=UtcDateTime))
        .columns(
            id=String,
            user_id=String,
            number=Integer,
            work_since=UtcDateTime,
            waits_since=UtcDateTime,
            urgency=Integer,
            share=Integer,
        )
    )


def may_displace(work_since: datetime | None, now: datetime, *, is_full: bool) -> bool:
    """Whether an agent that found no room gets the place of one that is idle. `is_full`: its pool has as many processes
    as it may have. A pool that may have more gets one soon, in most cases; where none comes (nobody starts processes,
    an image cannot be pulled, no machine has room), the agents share those that are there."""
    return work_since is not None and (is_full or work_since <= now - PROCESS_STARTS)


def counted(connection: Connection, now: datetime) -> dict[str, int]:
    """How many there are, by pool."""
    rows: list[Row[Any]] = list(connection.execute(_COUNTED, _times(now)))
    return {row.pool: row.unplaced for row in rows}


def _times(now: datetime) -> dict[str, datetime]:
    return {"soon": now + SLEEPS_LONG, "new_since": now - NEW_FOR}
