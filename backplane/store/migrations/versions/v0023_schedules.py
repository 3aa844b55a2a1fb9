"""Schedules: messages to agents at times that users have set."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(36), sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
        sa.Column("timing", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("data", sa.Text),
        sa.Column("overlap", sa.String(8), nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("updated_at", UTC_TIME, nullable=False),
        sa.Column("next_at", UTC_TIME),
        sa.Column("look_at", UTC_TIME),
        sa.Column("paused_at", UTC_TIME),
        sa.Column("last_at", UTC_TIME),
        sa.Column("last_outcome", sa.String(32)),
        sa.Column("last_run_id", sa.String(36)),
        sa.Column("sent", sa.Integer, nullable=False),
        sa.UniqueConstraint("user_id", "name"),
    )
    op.create_index("ix_schedules_agent_id", "schedules", ["agent_id"])
    op.create_index(
        "ix_schedules_look_at",
        "schedules",
        ["look_at"],
        postgresql_where=sa.text("look_at IS NOT NULL"),
        sqlite_where=sa.text("look_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("schedules")
