"""Agents that live: pools, agents, the processes of pools, and the runs that are messages to agents."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)
OF_RUNS = {
    "ix_runs_agent_id_turn": (["agent_id", "turn"], "agent_id IS NOT NULL"),
    "ix_runs_mailbox": (["agent_id", "turn"], "in_mailbox"),
    "ix_runs_expires_at": (["expires_at"], "expires_at IS NOT NULL AND finished_at IS NULL"),
}
OF_AGENTS = {
    "uq_agents_name": (["user_id", "pool", "name"], "terminated_at IS NULL"),
    "uq_agents_number": (["pool", "number"], "terminated_at IS NULL"),
    "ix_agents_process_id": (["process_id"], "process_id IS NOT NULL"),
    "ix_agents_open_run_id": (["open_run_id"], "open_run_id IS NOT NULL"),
    "ix_agents_never_placed": (["pool", "created_at"], "generation = 0 AND terminated_at IS NULL"),
}
DEFAULT_POOLS = ("team_leader", "business_analyst", "developer", "tester")
"""The roles that come along; each has a pool."""


def upgrade() -> None:
    op.add_column("runs", sa.Column("agent_id", sa.String(36)))
    op.add_column("runs", sa.Column("turn", sa.Integer))
    op.add_column("runs", sa.Column("in_mailbox", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("runs", sa.Column("expires_at", UTC_TIME))
    for name, (columns, where) in OF_RUNS.items():
        _index(name, "runs", columns, where)
    pools = op.create_table(
        "agent_pools",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(64), nullable=False),
        sa.Column("agents_per_process", sa.Integer, nullable=False),
        sa.Column("min_processes", sa.Integer, nullable=False),
        sa.Column("max_processes", sa.Integer, nullable=False),
        sa.Column("sleep_after_seconds", sa.Integer, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("free_number", sa.Integer, nullable=False),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("pool", sa.String(64), sa.ForeignKey("agent_pools.name"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("last_active_at", UTC_TIME, nullable=False),
        sa.Column("state_version", sa.Integer, nullable=False),
        sa.Column("model", sa.String(200)),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("turns", sa.Integer, nullable=False),
        sa.Column("open_run_id", sa.String(36)),
        sa.Column("process_id", sa.String(200)),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("placed_at", UTC_TIME),
        sa.Column("paused_at", UTC_TIME),
        sa.Column("terminated_at", UTC_TIME),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("summary", sa.Text),
    )
    for name, (columns, where) in OF_AGENTS.items():
        _index(name, "agents", columns, where, unique=name.startswith("uq_"))
    op.create_index("ix_agents_user_id_id", "agents", ["user_id", "id"])
    op.create_table(
        "agent_processes",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("pool", sa.String(64), sa.ForeignKey("agent_pools.name"), nullable=False),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("ranges", sa.String(200)),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("started_at", UTC_TIME, nullable=False),
        sa.Column("heartbeat_at", UTC_TIME, nullable=False),
        sa.Column("lease_until", UTC_TIME, nullable=False),
        sa.Column("draining_since", UTC_TIME),
    )
    op.create_index("ix_agent_processes_pool", "agent_processes", ["pool"])
    now = datetime.now(UTC)
    for role in DEFAULT_POOLS:
        op.execute(
            pools.insert().values(
                name=f"{role}_pool",
                role=role,
                agents_per_process=10,
                min_processes=0,
                max_processes=4,
                sleep_after_seconds=600,
                created_at=now,
                free_number=1,
            )
        )


def _index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def downgrade() -> None:
    for table in ("agent_processes", "agents", "agent_pools"):
        op.drop_table(table)
    for name in OF_RUNS:
        op.drop_index(name, "runs")
    for column in ("expires_at", "in_mailbox", "turn", "agent_id"):
        op.drop_column("runs", column)
