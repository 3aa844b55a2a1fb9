"""What each step changed of its files beside their content: times, modes, folders and links."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("attributes", sa.Text))


def downgrade() -> None:
    op.drop_column("steps", "attributes")
