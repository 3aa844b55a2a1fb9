"""The event bus: users' events, what runs wait for, notices that runs ended, and hooks that others post to."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "bus_logs",
        sa.Column("user_id", sa.String(36), primary_key=True),
        sa.Column("last_cursor", sa.BigInteger, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "bus_events",
        sa.Column("user_id", sa.String(36), primary_key=True),
        sa.Column("cursor", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("type", sa.String(128), nullable=False),
        sa.Column("source", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(512)),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("stored_at", UTC_TIME, nullable=False),
        sa.UniqueConstraint("user_id", "digest"),
    )
    op.create_index("ix_bus_events_stored_at", "bus_events", ["stored_at"])
    op.create_table(
        "run_notices",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "event_waits",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("run_id", sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("pattern", sa.String(130), nullable=False),
        sa.Column("wanted", sa.Text),
        sa.Column("after_cursor", sa.BigInteger, nullable=False),
        sa.Column("timeout_at", UTC_TIME),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("event", sa.Text),
        sa.Column("wake_at", UTC_TIME),
        sa.UniqueConstraint("run_id", "key"),
    )
    _index_waits("ix_event_waits_open", ["user_id", "pattern"], "status = 'open'")
    _index_waits("ix_event_waits_timeout", ["timeout_at"], "status = 'open' AND timeout_at IS NOT NULL")
    _index_waits("ix_event_waits_wake", ["wake_at"], "wake_at IS NOT NULL")
    op.create_table(
        "hooks",
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("type", sa.String(128), nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("updated_at", UTC_TIME, nullable=False),
        sa.UniqueConstraint("address"),
    )


def _index_waits(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "event_waits", columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def downgrade() -> None:
    for table in ("hooks", "event_waits", "run_notices", "bus_events", "bus_logs"):
        op.drop_table(table)
