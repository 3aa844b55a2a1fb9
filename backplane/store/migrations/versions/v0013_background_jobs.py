"""Jobs that a person asks for and watches (bulk actions, exports), and what a bulk action does to each run."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "background_jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("refused", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("error", sa.Text),
        sa.Column("result", sa.Text),
    )
    op.create_index("ix_background_jobs_user_id_id", "background_jobs", ["user_id", "id"])
    unfinished = sa.text("status IN ('queued', 'running')")
    op.create_index(
        "ix_background_jobs_unfinished",
        "background_jobs",
        ["lease_until"],
        postgresql_where=unfinished,
        sqlite_where=unfinished,
    )
    op.create_index("ix_background_jobs_finished_at", "background_jobs", ["finished_at"])
    op.create_table(
        "background_job_items",
        sa.Column("job_id", sa.String(36), sa.ForeignKey("background_jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True)),
        sa.Column("detail", sa.Text),
    )


def downgrade() -> None:
    op.drop_table("background_job_items")
    op.drop_index("ix_background_jobs_finished_at", "background_jobs")
    op.drop_index("ix_background_jobs_unfinished", "background_jobs")
    op.drop_index("ix_background_jobs_user_id_id", "background_jobs")
    op.drop_table("background_jobs")
