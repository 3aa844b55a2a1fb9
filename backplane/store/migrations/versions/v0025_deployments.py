"""Deployments, their namespaces, revisions, events and log lines."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("agent_id", sa.String(40), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("effective", sa.Integer),
        sa.Column("replicas", sa.Integer),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("updated_at", UTC_TIME, nullable=False),
        sa.Column("deleted_at", UTC_TIME),
        sa.Column("delete_grace_seconds", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Column("last_line", sa.BigInteger, nullable=False),
        sa.Column("log_chars", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("idempotency_digest", sa.String(64)),
        sa.UniqueConstraint("namespace", "agent_id"),
        sa.UniqueConstraint("user_id", "idempotency_key"),
    )
    for column in ("user_id", "status", "agent_id"):
        op.create_index(f"ix_deployments_{column}_id", "deployments", [column, "id"])
    op.create_table(
        "deployment_namespaces",
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
    )
    op.create_index("ix_deployment_namespaces_user_id", "deployment_namespaces", ["user_id"])
    op.create_table(
        "deployment_revisions",
        *_key(sa.Integer),
        sa.Column("image", sa.String(500), nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("restarted", sa.Integer, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(36), nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("approval", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(36)),
        sa.Column("decided_at", UTC_TIME),
        sa.Column("decision_reason", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("outcome_reason", sa.Text, nullable=False),
        sa.Column("ended_at", UTC_TIME),
    )
    op.create_table(
        "deployment_events",
        *_key(sa.Integer),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
    )
    op.create_table(
        "deployment_log_lines",
        *_key(sa.BigInteger),
        sa.Column("replica", sa.String(253), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("left_out", sa.Integer, nullable=False),
        sa.Column("end_chars", sa.BigInteger, nullable=False),
    )


def _key(number: type[sa.Integer]) -> list[sa.Column[object]]:
    of_deployment = sa.ForeignKey("deployments.id", ondelete="CASCADE")
    return [
        sa.Column("deployment_id", sa.String(36), of_deployment, primary_key=True),
        sa.Column("number", number, primary_key=True),
    ]


def downgrade() -> None:
    for table in ("log_lines", "events", "revisions", "namespaces"):
        op.drop_table(f"deployment_{table}")
    op.drop_table("deployments")
