"""The idempotency key with which a bulk action or an export was asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("background_jobs", sa.Column("idempotency_key", sa.String(255)))
    op.add_column("background_jobs", sa.Column("idempotency_digest", sa.String(64)))
    op.create_index(
        "uq_background_jobs_user_id_idempotency_key", "background_jobs", ["user_id", "idempotency_key"], unique=True
    )


def downgrade() -> None:
    op.drop_index("uq_background_jobs_user_id_idempotency_key", "background_jobs")
    op.drop_column("background_jobs", "idempotency_digest")
    op.drop_column("background_jobs", "idempotency_key")
