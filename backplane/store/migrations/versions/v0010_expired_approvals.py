"""Approvals that no longer hold, because their run was retried; and the worker that took a run last."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("decisions", sa.Column("expired_at", sa.DateTime(timezone=True)))
    op.add_column("runs", sa.Column("worker_id", sa.String(200)))


def downgrade() -> None:
    op.drop_column("runs", "worker_id")
    op.drop_column("decisions", "expired_at")
