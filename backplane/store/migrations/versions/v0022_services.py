"""Services, what their health was, and webhooks that are about them and about no run."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "services",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("owner_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("updated_at", UTC_TIME, nullable=False),
        sa.Column("deleted_at", UTC_TIME),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("since", UTC_TIME),
        sa.Column("checked_at", UTC_TIME),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("latency_ms", sa.Float),
        sa.Column("streak", sa.Integer, nullable=False),
        sa.Column("changes", sa.Text, nullable=False),
        sa.Column("flapping_since", UTC_TIME),
        sa.Column("checks", sa.BigInteger, nullable=False),
        sa.Column("container", sa.String(16), nullable=False),
        sa.Column("container_reason", sa.Text, nullable=False),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "service_changes",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("service_id", sa.String(36), sa.ForeignKey("services.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_service_changes_service_id_number", "service_changes", ["service_id", "number"])
    # SQLite makes the table anew for this, with its indexes.
    with op.batch_alter_table("webhook_deliveries") as deliveries:
        deliveries.alter_column("run_id", existing_type=sa.String(36), nullable=True)
        deliveries.add_column(sa.Column("service_id", sa.String(36)))
    of_services = sa.text("service_id IS NOT NULL")
    op.create_index(
        "ix_webhook_deliveries_service_id",
        "webhook_deliveries",
        ["service_id"],
        postgresql_where=of_services,
        sqlite_where=of_services,
    )


def downgrade() -> None:
    op.execute("DELETE FROM webhook_deliveries WHERE run_id IS NULL")
    op.drop_index("ix_webhook_deliveries_service_id", "webhook_deliveries")
    with op.batch_alter_table("webhook_deliveries") as deliveries:
        deliveries.drop_column("service_id")
        deliveries.alter_column("run_id", existing_type=sa.String(36), nullable=False)
    op.drop_table("service_changes")
    op.drop_table("services")
