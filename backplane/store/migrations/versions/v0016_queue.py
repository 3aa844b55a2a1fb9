"""The queue in which a run waits."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("queue", sa.String(64), nullable=False, server_default="default"))


def downgrade() -> None:
    op.drop_column("runs", "queue")
