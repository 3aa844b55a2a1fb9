"""The tables of what people do and want: their sessions, what they did, their preferences."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table

from backplane.store.tables import Json, UtcDateTime, metadata

# Of people who signed in with a token. A session is over when one of its times has come, or its token is.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("token_id", ForeignKey("tokens.id"), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Index("ix_sessions_user_id_created_at", "user_id", "created_at"),
)

# What people did. Only `outcome` and `status` are ever changed, once: from what was begun to how it ended. Names are
# kept, since who did something stays known by the name of that time.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("user_id", String(36), nullable=False),
    Column("user_name", String(200), nullable=False),
    Column("token_id", String(36)),
    Column("session_id", String(36)),
    Column("action", String(64), nullable=False),
    Column("target", String(300), nullable=False),
    Column("details", Json, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("status", Integer),
    Index("ix_audit_entries_user_id_seq", "user_id", "seq"),
    Index("ix_audit_entries_action_seq", "action", "seq"),
    Index("ix_audit_entries_at", "at"),
    sqlite_autoincrement=True,
)

preferences = Table(
    "preferences",
    metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("value", Json, nullable=False),
    Column("version", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
