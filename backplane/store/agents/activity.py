"""What all agents of all pools do at this moment, counted in one query: for metrics, where nobody is named.

It follows `domain.agents.status_of`, but for two things: an agent whose process is lost counts as having one until it
is placed anew, and one whose last turn failed as idle. What a person is asked stands apart: by the decision's kind.
"""

from sqlalchemy import Connection, case, func, literal, select

from backplane.domain.agents import PoolActivity
from backplane.domain.decisions import DecisionStatus
from backplane.domain.runs import RunStatus
from backplane.store.agents.tables import agent_pools, agents
from backplane.store.clock import database_now
from backplane.store.tables import decisions, runs

STATES = ("working", "waiting", "approval", "question", "budget", "idle", "asleep", "paused")

_PENDING = (
    select(
        decisions.c.run_id,
        func.min(decisions.c.kind).label("kind"),
        func.min(decisions.c.created_at).label("since"),
    )
    .where(decisions.c.status == DecisionStatus.PENDING.value)
    .group_by(decisions.c.run_id)
    .subquery()
)


def activity(connection: Connection) -> list[PoolActivity]:
    """By pool, of the states in which there is an agent."""
    now = database_now(connection)
    state = case(
        (runs.c.status == RunStatus.RUNNING.value, literal("working")),
        (agents.c.paused_at.is_not(None), literal("paused")),
        (
            (runs.c.status == RunStatus.QUEUED.value) & agents.c.process_id.is_not(None) & (runs.c.queued_at <= now),
            literal("working"),
        ),
        ((runs.c.status == RunStatus.WAITING.value) & _PENDING.c.kind.is_not(None), _PENDING.c.kind),
        (runs.c.id.is_not(None), literal("waiting")),
        (agents.c.process_id.is_not(None), literal("idle")),
        else_=literal("asleep"),
    ).label("state")
    query = (
        select(agents.c.pool, agent_pools.c.role, state, func.count().label("agents"), func.min(_PENDING.c.since))
        .join(agent_pools, agent_pools.c.name == agents.c.pool)
        .outerjoin(runs, runs.c.id == agents.c.open_run_id)
        .outerjoin(_PENDING, _PENDING.c.run_id == runs.c.id)
        .where(agents.c.terminated_at.is_(None))
        .group_by(agents.c.pool, agent_pools.c.role, state)
        .order_by(agents.c.pool, state)
    )
    return [
        PoolActivity(pool, role, doing, count, max((now - since).total_seconds(), 0.0) if since else 0.0)
        for pool, role, doing, count, since in connection.execute(query)
    ]
