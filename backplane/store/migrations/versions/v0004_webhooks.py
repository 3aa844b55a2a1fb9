"""Webhooks: a run's URL, what is to be delivered, whose secret signs it. Retention: what of a run has gone already."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("runs", sa.Column("webhook_url", sa.String(2048)))
    for name in ("files_expired_at", "files_removed_at", "events_trimmed_at", "retention_lease"):
        op.add_column("runs", sa.Column(name, UTC_TIME))
    _index_runs("ix_runs_finished", "finished_at IS NOT NULL")
    _index_runs("ix_runs_finished_with_files", "finished_at IS NOT NULL AND files_removed_at IS NULL")
    _index_runs("ix_runs_finished_with_events", "finished_at IS NOT NULL AND events_trimmed_at IS NULL")
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("run_id", sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("next_at", UTC_TIME, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("response_code", sa.Integer),
    )
    op.create_index("ix_webhook_deliveries_run_id_id", "webhook_deliveries", ["run_id", "id"])
    pending = sa.text("status = 'pending'")
    op.create_index(
        "ix_webhook_deliveries_pending",
        "webhook_deliveries",
        ["next_at"],
        postgresql_where=pending,
        sqlite_where=pending,
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("previous", sa.String(64)),
        sa.Column("previous_until", UTC_TIME),
    )


def _index_runs(name: str, where: str) -> None:
    op.create_index(name, "runs", ["finished_at"], postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def downgrade() -> None:
    op.drop_table("webhook_secrets")
    op.drop_table("webhook_deliveries")
    for name in ("ix_runs_finished_with_events", "ix_runs_finished_with_files", "ix_runs_finished"):
        op.drop_index(name, "runs")
    for name in ("retention_lease", "events_trimmed_at", "files_removed_at", "files_expired_at", "webhook_url"):
        op.drop_column("runs", name)
