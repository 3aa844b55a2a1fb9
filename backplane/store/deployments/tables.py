"""The tables of deployments.

`deployments.effective` is the number of the revision that the target is to have, so whoever looks at all deployments
needs one query. `last_event`, `last_line` and `log_chars` count what was ever written, also what is not kept any more.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
)

from backplane.store.tables import ForeignText, Json, UtcDateTime, metadata

deployments = Table(
    "deployments",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("agent_id", String(40), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("effective", Integer),
    Column("replicas", Integer),
    Column("status", String(16), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("rollout", Json, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    Column("delete_grace_seconds", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("last_event", Integer, nullable=False),
    Column("last_line", BigInteger, nullable=False),
    Column("log_chars", BigInteger, nullable=False),
    Column("idempotency_key", String(255)),
    Column("idempotency_digest", String(64)),
    UniqueConstraint("namespace", "agent_id"),
    UniqueConstraint("user_id", "idempotency_key"),
    Index("ix_deployments_user_id_id", "user_id", "id"),
    Index("ix_deployments_status_id", "status", "id"),
    Index("ix_deployments_agent_id_id", "agent_id", "id"),
)

deployment_namespaces = Table(
    "deployment_namespaces",
    metadata,
    Column("namespace", String(63), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_deployment_namespaces_user_id", "user_id"),
)

deployment_revisions = Table(
    "deployment_revisions",
    metadata,
    Column("deployment_id", ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("image", String(500), nullable=False),
    Column("manifest", Json, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("restarted", Integer, nullable=False),
    Column("cause", ForeignText, nullable=False),
    Column("created_by", String(36), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("approval", String(16), nullable=False),
    Column("decided_by", String(36)),
    Column("decided_at", UtcDateTime),
    Column("decision_reason", ForeignText, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("outcome_reason", ForeignText, nullable=False),
    Column("ended_at", UtcDateTime),
)

deployment_events = Table(
    "deployment_events",
    metadata,
    Column("deployment_id", ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("type", String(16), nullable=False),
    Column("message", ForeignText, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

deployment_log_lines = Table(
    "deployment_log_lines",
    metadata,
    Column("deployment_id", ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("replica", String(253), nullable=False),
    Column("text", ForeignText, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("left_out", Integer, nullable=False),
    Column("end_chars", BigInteger, nullable=False),
)
