"""Runs that a handler carries out, and the steps that are its effects."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

COLUMNS = {
    "runs": (
        ("handler", sa.String(64)),
        ("input", sa.Text),
        ("handler_code", sa.String(64)),
        ("parent_id", sa.String(36)),
    ),
    "steps": (("ordinal", sa.Integer), ("request", sa.String(64))),
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind))
    where = sa.text("parent_id IS NOT NULL")
    op.create_index("ix_runs_parent_id", "runs", ["parent_id"], postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    op.drop_index("ix_runs_parent_id", "runs")
    for table, columns in COLUMNS.items():
        for name, _ in columns:
            op.drop_column(table, name)
