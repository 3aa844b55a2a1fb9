"""The tables of GPU machines and of the model servers on them, once, for SQLite and PostgreSQL."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table

from backplane.store.tables import ForeignText, Json, UtcDateTime, metadata, partial_index

gpu_machines = Table(
    "gpu_machines",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("provider", String(16), nullable=False),
    Column("spec", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("wanted_by", String(36), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_since", UtcDateTime, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("micro_usd_per_hour", BigInteger, nullable=False),
    Column("offer", String(64)),
    Column("contract", String(64)),
    Column("url", String(2048)),
    Column("reason", ForeignText, nullable=False),
    Column("paid_since", UtcDateTime),
    Column("charged_until", UtcDateTime),
    Column("charged_micro_usd", BigInteger, nullable=False),
    Column("health_tries", Integer, nullable=False),
    Column("checked_at", UtcDateTime),
    Column("missing_since", UtcDateTime),
    Column("ready_at", UtcDateTime),
    Column("stop_reason", ForeignText),
    Column("ended_at", UtcDateTime),
    Column("version", Integer, nullable=False),
    partial_index("ix_gpu_machines_open", "created_at", where="ended_at IS NULL"),
    partial_index(
        "uq_gpu_machines_contract",
        "provider",
        "contract",
        where="contract IS NOT NULL AND ended_at IS NULL",
        unique=True,
    ),
    Index("ix_gpu_machines_created_at", "created_at"),
)

# What a machine cost, at most an hour in a row. Never changed; each is booked in the ledger in the same transaction.
gpu_charges = Table(
    "gpu_charges",
    metadata,
    Column("machine_id", ForeignKey("gpu_machines.id"), primary_key=True),
    Column("since", UtcDateTime, primary_key=True),
    Column("until", UtcDateTime, nullable=False),
    Column("micro_usd", BigInteger, nullable=False),
    Index("ix_gpu_charges_since", "since"),
)

# Model servers that come and go while workers run, beside those of MODEL_SERVERS.
model_servers = Table(
    "model_servers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("pool", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("url", String(2048), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("machine_id", ForeignKey("gpu_machines.id"), nullable=False),
    Column("provider", String(16), nullable=False),
    Column("models", Json, nullable=False),
    Column("gpu_type", String(64), nullable=False),
    Column("micro_usd_per_hour", BigInteger, nullable=False),
    Column("draining", Boolean, nullable=False),
)

# One row: what the controller last saw and decided.
gpu_status = Table(
    "gpu_status",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("status", Json, nullable=False),
)
