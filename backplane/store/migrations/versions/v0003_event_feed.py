"""Events get their user and a place among all of the user's events. The table is made anew: SQLite counts up for ever
in a primary key only, and cannot change one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_postgres = op.get_bind().dialect.name == "postgresql"
    op.rename_table("events", "events_before")
    if on_postgres:
        op.execute("ALTER INDEX pk_events RENAME TO pk_events_before")
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("run_id", sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column(
            "tx",
            sa.BigInteger,
            nullable=False,
            server_default=sa.text("((pg_current_xact_id())::text)::bigint" if on_postgres else "0"),
        ),
        sa.Column("line", sa.Text, nullable=False),
        sa.UniqueConstraint("run_id", "id"),
        sqlite_autoincrement=True,
    )
    # By run and number: within a run that is the order in which they were published; run ids begin with a time.
    op.execute(
        "INSERT INTO events (run_id, id, user_id, line) SELECT run_id, events_before.id, user_id, line"
        " FROM events_before JOIN runs ON runs.id = run_id ORDER BY run_id, events_before.id"
    )
    op.drop_table("events_before")
    op.create_index("ix_events_user_id_tx_seq", "events", ["user_id", "tx", "seq"])


def downgrade() -> None:
    op.rename_table("events", "events_after")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX pk_events RENAME TO pk_events_after")
    op.create_table(
        "events",
        sa.Column("run_id", sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("line", sa.Text, nullable=False),
    )
    op.execute("INSERT INTO events (run_id, id, line) SELECT run_id, id, line FROM events_after")
    op.drop_table("events_after")
