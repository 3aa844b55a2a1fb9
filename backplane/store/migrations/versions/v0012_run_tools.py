"""The tools of MCP servers that a run was offered, so that a replay can offer the same."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "run_tools",
        sa.Column("run_id", sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tools", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("run_tools")
