"""Events that become messages to agents: what roles listen to, and how far each agent is."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "role_events",
        sa.Column("role", sa.String(64), primary_key=True),
        sa.Column("patterns", sa.Text, nullable=False),
        sa.Column("since", UTC_TIME, nullable=False),
    )
    op.create_table(
        "agent_event_cursors",
        sa.Column("agent_id", sa.String(36), sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("look_at", UTC_TIME, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("agent_event_cursors")
    op.drop_table("role_events")
