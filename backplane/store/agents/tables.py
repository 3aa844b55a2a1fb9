"""The tables of agents, once, for SQLite and PostgreSQL."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from backplane.store.tables import Json, UtcDateTime, metadata, partial_index

# `free_number`: no number below it is free.
agent_pools = Table(
    "agent_pools",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(64), nullable=False),
    Column("agents_per_process", Integer, nullable=False),
    Column("min_processes", Integer, nullable=False),
    Column("max_processes", Integer, nullable=False),
    Column("sleep_after_seconds", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("free_number", Integer, nullable=False),
)

# Whoever opens, ends or adds a message of an agent, or places it, locks its row first, and then rows of runs. Where the
# pool's row is needed too, that comes before both. Rows of several agents are locked in the order of their ids.
agents = Table(
    "agents",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("pool", ForeignKey("agent_pools.name"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_active_at", UtcDateTime, nullable=False),
    Column("state_version", Integer, nullable=False),
    Column("model", String(200)),
    Column("metadata", Json, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("open_run_id", String(36)),
    Column("process_id", String(200)),
    Column("generation", Integer, nullable=False),
    Column("placed_at", UtcDateTime),
    Column("paused_at", UtcDateTime),
    Column("terminated_at", UtcDateTime),
    Column("state", Json, nullable=False),
    Column("summary", Json),
    partial_index("uq_agents_name", "user_id", "pool", "name", where="terminated_at IS NULL", unique=True),
    partial_index("uq_agents_number", "pool", "number", where="terminated_at IS NULL", unique=True),
    partial_index("ix_agents_process_id", "process_id", where="process_id IS NOT NULL"),
    partial_index("ix_agents_open_run_id", "open_run_id", where="open_run_id IS NOT NULL"),
    partial_index("ix_agents_never_placed", "pool", "created_at", where="generation = 0 AND terminated_at IS NULL"),
    Index("ix_agents_user_id_id", "user_id", "id"),
)

# The times are the database's own.
agent_processes = Table(
    "agent_processes",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("pool", ForeignKey("agent_pools.name"), nullable=False),
    Column("node", String(255), nullable=False),
    Column("ranges", String(200)),
    Column("capacity", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    Column("draining_since", UtcDateTime),
    Index("ix_agent_processes_pool", "pool"),
)

# The types of events that a role listens to, and since when.
role_events = Table(
    "role_events",
    metadata,
    Column("role", String(64), primary_key=True),
    Column("patterns", Json, nullable=False),
    Column("since", UtcDateTime, nullable=False),
)

# How far an agent of such a role is: the place of the last event that has become a message to it. `look_at`, by the
# database's clock: when its events are looked at again.
agent_event_cursors = Table(
    "agent_event_cursors",
    metadata,
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("cursor", BigInteger, nullable=False),
    Column("look_at", UtcDateTime, nullable=False),
)

# Messages at times that users have set. `timing`: as `Timing.as_dict`. `next_at`: the next time; `look_at`: when a
# controller looks at it, which is later where the agent's mailbox was full. Both are empty while it is paused, or where
# no time is left.
schedules = Table(
    "schedules",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("timing", Json, nullable=False),
    Column("text", Text, nullable=False),
    Column("data", Json),
    Column("overlap", String(8), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("next_at", UtcDateTime),
    Column("look_at", UtcDateTime),
    Column("paused_at", UtcDateTime),
    Column("last_at", UtcDateTime),
    Column("last_outcome", String(32)),
    Column("last_run_id", String(36)),
    Column("sent", Integer, nullable=False),
    UniqueConstraint("user_id", "name"),
    Index("ix_schedules_agent_id", "agent_id"),
    partial_index("ix_schedules_look_at", "look_at", where="look_at IS NOT NULL"),
)
