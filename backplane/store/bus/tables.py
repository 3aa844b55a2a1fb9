"""The tables of the event bus, once, for SQLite and PostgreSQL."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from backplane.store.tables import Json, UtcDateTime, metadata, partial_index

# One row a user: the place of the user's last event, and how much is kept. Whoever adds an event locks it until the
# commit, so places become visible in their order; whoever begins to wait locks it too.
bus_logs = Table(
    "bus_logs",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("last_cursor", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

# `digest` is of source and id; `line` is the whole event as JSON, and `size` its length in bytes.
bus_events = Table(
    "bus_events",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("cursor", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("type", String(128), nullable=False),
    Column("source", String(512), nullable=False),
    Column("subject", String(512)),
    Column("line", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("stored_at", UtcDateTime, nullable=False),
    UniqueConstraint("user_id", "digest"),
    Index("ix_bus_events_stored_at", "stored_at"),
)

# That a run came into a state which is an event of the platform. Written with the state, in one transaction; a
# controller makes the event of it, and removes the row in the same transaction. No foreign key: it would cost the run
# a look into its own row, and the event is due although the run is removed.
run_notices = Table(
    "run_notices",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("run_id", String(36), nullable=False),
    Column("user_id", String(36), nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    sqlite_autoincrement=True,
)

event_waits = Table(
    "event_waits",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", String(36), nullable=False),
    Column("key", String(200), nullable=False),
    Column("pattern", String(130), nullable=False),
    Column("wanted", Json),
    Column("after_cursor", BigInteger, nullable=False),
    Column("timeout_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", String(16), nullable=False),
    Column("event", Text),
    # When the run is to be woken, or (once somebody has claimed that) looked at again; empty: nothing is to be done.
    Column("wake_at", UtcDateTime),
    UniqueConstraint("run_id", "key"),
    partial_index("ix_event_waits_open", "user_id", "pattern", where="status = 'open'"),
    partial_index("ix_event_waits_timeout", "timeout_at", where="status = 'open' AND timeout_at IS NOT NULL"),
    partial_index("ix_event_waits_wake", "wake_at", where="wake_at IS NOT NULL"),
)

# Where others post to, and what they sign with. `address` is the last part of the URL. The secret is sealed.
hooks = Table(
    "hooks",
    metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("address", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("type", String(128), nullable=False),
    Column("sealed", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
