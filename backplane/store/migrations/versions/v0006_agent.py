"""What an agent needs: its models' calls, decisions of people, budgets and their ledger, secrets, plans and their
versions, runs that are made from runs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)
SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("runs", sa.Column("agent", sa.String(64), nullable=False, server_default="default"))
    op.add_column("runs", sa.Column("model", sa.String(200)))
    op.add_column("runs", sa.Column("planner", sa.String(16)))
    op.add_column("runs", sa.Column("plan_version", sa.Integer, nullable=False, server_default="1"))
    for name in ("budget", "mcp_servers", "origin", "restore", "result"):
        op.add_column("runs", sa.Column(name, sa.Text))
    op.add_column("steps", sa.Column("files", sa.Text))
    op.add_column("steps", sa.Column("failed_tries", sa.Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("steps") as steps:
        steps.alter_column("step_id", type_=sa.String(128), existing_nullable=False)
    # A step of an older plan had always to wait for all before it: now it says so by leaving `needs` out, as an older
    # release reads it too. The field behind it is named so that no step's arguments are meant.
    _replace_in_plans('"needs":[],"timeout_seconds":', '"timeout_seconds":')
    op.create_table(
        "plan_versions",
        _run_id(primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("replaced_at", UTC_TIME, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(36), primary_key=True),
        _run_id(),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("step_id", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("decided_at", UTC_TIME),
        sa.Column("decided_by", sa.String(36)),
    )
    op.create_index("ix_decisions_run_id_id", "decisions", ["run_id", "id"])
    pending = sa.text("status = 'pending'")
    op.create_index(
        "ix_decisions_pending", "decisions", ["user_id", "id"], postgresql_where=pending, sqlite_where=pending
    )
    op.create_table(
        "model_calls",
        _run_id(primary_key=True),
        sa.Column("step_id", sa.String(128), primary_key=True),
        sa.Column("purpose", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("server", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("response", sa.Text),
        sa.Column("input_tokens", sa.Integer),
        sa.Column("output_tokens", sa.Integer),
        sa.Column("micro_usd", sa.BigInteger),
        sa.Column("error", sa.Text),
        sa.Column("started_at", UTC_TIME, nullable=False),
        sa.Column("finished_at", UTC_TIME),
    )
    _ledger()
    op.create_table(
        "secrets",
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("tools", sa.Text, nullable=False),
        sa.Column("hosts", sa.Text, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("updated_at", UTC_TIME, nullable=False),
    )


def _run_id(*, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(
        "run_id", sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=primary_key, nullable=False
    )


def _ledger() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("owner", sa.String(96), nullable=False),
        sa.Column("resource", sa.String(32), nullable=False),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("closed_at", UTC_TIME),
        sa.CheckConstraint("balance >= 0", name="balance_not_negative"),
        sa.CheckConstraint("reserved >= 0", name="reserved_not_negative"),
        sa.CheckConstraint("spent >= 0", name="spent_not_negative"),
    )
    op.create_index("ix_accounts_owner", "accounts", ["owner"])
    op.create_table(
        "ledger_entries",
        sa.Column("seq", SEQUENCE, primary_key=True),
        sa.Column("account_id", sa.String(128), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("transfer_id", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("balance_change", sa.BigInteger, nullable=False),
        sa.Column("reserved_change", sa.BigInteger, nullable=False),
        sa.Column("spent_change", sa.BigInteger, nullable=False),
        sa.Column("balance_after", sa.BigInteger, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("run_id", sa.String(36)),
        sa.Column("step_id", sa.String(128)),
        sa.Column("note", sa.String(500), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ledger_entries_account_id_seq", "ledger_entries", ["account_id", "seq"])
    movements = sa.text("kind IN ('deposit', 'withdraw', 'transfer')")
    op.create_index(
        "uq_ledger_entries_movement",
        "ledger_entries",
        ["transfer_id", "account_id"],
        unique=True,
        postgresql_where=movements,
        sqlite_where=movements,
    )
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("step_id", sa.String(128), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("amounts", sa.Text, nullable=False),
        sa.Column("accounts", sa.Text, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
    )
    op.create_index("ix_reservations_run_id", "reservations", ["run_id"])


def _replace_in_plans(old: str, new: str) -> None:
    for name in ("plan", "given_plan"):
        column: sa.ColumnClause[str] = sa.column(name, sa.Text)
        runs = sa.table("runs", column)
        changed = sa.func.replace(column, old, new)
        op.execute(sa.update(runs).where(column.like(f"%{old}%")).values({name: changed}))


def downgrade() -> None:
    for table in ("secrets", "reservations", "ledger_entries", "accounts", "model_calls", "decisions", "plan_versions"):
        op.drop_table(table)
    op.drop_column("steps", "failed_tries")
    op.drop_column("steps", "files")
    for name in ("result", "restore", "origin", "mcp_servers", "budget", "plan_version", "planner", "model", "agent"):
        op.drop_column("runs", name)
