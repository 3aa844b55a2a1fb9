"""What a run needs that only so many may use at once."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("resource", sa.String(64)))


def downgrade() -> None:
    op.drop_column("runs", "resource")
