"""The tables, once, for SQLite and PostgreSQL.

JSON is kept as text: it is read and written whole, never queried into, and PostgreSQL's own JSON types refuse
characters (U+0000) that a program's output may contain. Times are UTC.
"""

import json
import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from backplane.domain.runs import ids_beginning_with

_REFUSED = re.compile("[\0\ud800-\udfff]")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in, an aware datetime in UTC out, also where the database keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Json(TypeDecorator[Any]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class PathsJson(Json):
    """Values that name many paths. A letter takes as many bytes here as it does in a path: a backslash and four digits
    for each would make a row twice as large. What has no valid Unicode is refused, and a workspace holds none."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class ForeignText(TypeDecorator[str]):
    """Text that somebody else has worded (an exception, a server): characters that a database refuses are replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _REFUSED.sub("\N{REPLACEMENT CHARACTER}", value)


class writing_transaction(FunctionElement[int]):
    """The number of the transaction that writes: later ones have higher numbers. On SQLite, which has one writer at a
    time, 0."""

    type = BigInteger()
    inherit_cache = True


@compiles(writing_transaction)
def _(_element: writing_transaction, _compiler: Any, **_options: Any) -> str:
    return "0"


@compiles(writing_transaction, "postgresql")
def _(_element: writing_transaction, _compiler: Any, **_options: Any) -> str:
    return "((pg_current_xact_id())::text)::bigint"


def id_begins_with(column: Column[str], beginning: str) -> ColumnElement[bool]:
    between = ids_beginning_with(beginning)
    return column.between(*between) if between else false()


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of those rows only."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("tier", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# What belongs to the database as a whole (`store.platform`).
platform = Table(
    "platform",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(200), nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("label", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("is_read_only", Boolean, nullable=False, server_default=false()),
    Column("expires_at", UtcDateTime),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("given_plan", Json),
    Column("plan", Json),
    Column("timeout_seconds", Integer, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("resource", String(64)),
    Column("queue", String(64), nullable=False, server_default="default"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("cancel_requested_at", UtcDateTime),
    Column("error", Json),
    Column("idempotency_key", String(255)),
    Column("idempotency_digest", String(64)),
    Column("webhook_url", String(2048)),
    Column("files_expired_at", UtcDateTime),
    Column("files_removed_at", UtcDateTime),
    Column("events_trimmed_at", UtcDateTime),
    Column("retention_lease", UtcDateTime),
    Column("agent", String(64), nullable=False, server_default="default"),
    Column("model", String(200)),
    Column("planner", String(16)),
    Column("budget", Json),
    Column("mcp_servers", Json),
    Column("plan_version", Integer, nullable=False, server_default="1"),
    Column("origin", Json),
    Column("restore", Json),
    Column("result", Json),
    Column("worker_id", String(200)),
    # Of a run that a handler carries out, in place of a plan.
    Column("handler", String(64)),
    Column("input", Json),
    Column("handler_code", String(64)),
    Column("parent_id", String(36)),
    # Of a message to an agent (`store.agents`).
    Column("agent_id", String(36)),
    Column("turn", Integer),
    Column("in_mailbox", Boolean, nullable=False, server_default=false()),
    Column("expires_at", UtcDateTime),
    UniqueConstraint("user_id", "idempotency_key"),
    Index("ix_runs_user_id_id", "user_id", "id"),
    Index("ix_runs_status_id", "status", "id"),
    partial_index("ix_runs_parent_id", "parent_id", where="parent_id IS NOT NULL"),
    partial_index("ix_runs_agent_id_turn", "agent_id", "turn", where="agent_id IS NOT NULL"),
    partial_index("ix_runs_mailbox", "agent_id", "turn", where="in_mailbox"),
    partial_index("ix_runs_expires_at", "expires_at", where="expires_at IS NOT NULL AND finished_at IS NULL"),
    # What retention has still to look at, each by its age.
    partial_index("ix_runs_finished", "finished_at", where="finished_at IS NOT NULL"),
    partial_index(
        "ix_runs_finished_with_files", "finished_at", where="finished_at IS NOT NULL AND files_removed_at IS NULL"
    ),
    partial_index(
        "ix_runs_finished_with_events", "finished_at", where="finished_at IS NOT NULL AND events_trimmed_at IS NULL"
    ),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("step_id", String(128), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("title", String(200), nullable=False),
    Column("tool", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("result", Json),
    Column("files", PathsJson),
    Column("failed_tries", Integer, nullable=False, server_default="0"),
    Column("attributes", PathsJson),
    # Empty for a step of the plan. Read them by `store.identity`, which knows what older releases leave empty.
    Column("parent", String(64)),
    Column("round", Integer),
    # Of a handler's effects alone.
    Column("ordinal", Integer),
    Column("request", String(64)),
)

# The plans of a run that a newer one has replaced; the one in force is in the run's row.
plan_versions = Table(
    "plan_versions",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("plan", Json, nullable=False),
    Column("replaced_at", UtcDateTime, nullable=False),
    Column("reason", ForeignText, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", String(36), nullable=False),
    Column("step_id", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("asked", Json, nullable=False),
    Column("status", String(16), nullable=False),
    Column("answer", Json),
    Column("created_at", UtcDateTime, nullable=False),
    Column("decided_at", UtcDateTime),
    Column("decided_by", String(36)),
    Column("expired_at", UtcDateTime),
    Column("parent", String(64)),  # as in `steps`
    Index("ix_decisions_run_id_id", "run_id", "id"),
    partial_index("ix_decisions_pending", "user_id", "id", where="status = 'pending'"),
)

# The tools of MCP servers that a run was offered when it was last taken, each as {"name", "description", "parameters",
# "risk", "repeatable"}. A run that names no server has no row.
run_tools = Table(
    "run_tools",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("tools", Json, nullable=False),
)

# Every call of a model: noted before it is made, with its answer after it. `CallKey` says what `step`, `purpose`,
# `round`, `plan_version` and `ordinal` mean. Read them by `store.identity`; `step_id` and `number` are made of them.
model_calls = Table(
    "model_calls",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("step_id", String(128), primary_key=True),
    Column("purpose", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", String(36), nullable=False, unique=True),
    Column("generation", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("server", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("request", Json, nullable=False),
    Column("request_digest", String(64), nullable=False),
    Column("response", Json),
    Column("input_tokens", Integer),
    Column("output_tokens", Integer),
    Column("micro_usd", BigInteger),
    Column("error", Json),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("step", String(128)),
    Column("round", Integer),
    Column("plan_version", Integer),
    Column("ordinal", Integer),
)

# What an owner (run:{id}, user:{id}, tier:{name}) may still spend of a resource. The checks are the promise.
accounts = Table(
    "accounts",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("owner", String(96), nullable=False),
    Column("resource", String(32), nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime),
    CheckConstraint("balance >= 0", name="balance_not_negative"),
    CheckConstraint("reserved >= 0", name="reserved_not_negative"),
    CheckConstraint("spent >= 0", name="spent_not_negative"),
    Index("ix_accounts_owner", "owner"),
)

# Never changed and never removed with a run: an account's balance is the sum of its entries.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("transfer_id", String(200), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("balance_change", BigInteger, nullable=False),
    Column("reserved_change", BigInteger, nullable=False),
    Column("spent_change", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("run_id", String(36)),
    Column("step_id", String(128)),
    Column("note", String(500), nullable=False),
    Index("ix_ledger_entries_account_id_seq", "account_id", "seq"),
    # A movement happens once. What runs reserve may come again under one name, once it was settled.
    partial_index(
        "uq_ledger_entries_movement",
        "transfer_id",
        "account_id",
        where="kind IN ('deposit', 'withdraw', 'transfer')",
        unique=True,
    ),
    sqlite_autoincrement=True,
)

# What is reserved and not settled yet: what a lost worker leaves behind is settled by whoever takes its run over.
reservations = Table(
    "reservations",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("run_id", String(36), nullable=False),
    Column("step_id", String(128), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("amounts", Json, nullable=False),
    Column("accounts", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_reservations_run_id", "run_id"),
)

# Every value that a run was given, or that its plan named, sealed as the secret was then: also after the secret was
# changed or deleted, what the run says is redacted. `version` is a digest of `sealed`. They go with the run.
run_secrets = Table(
    "run_secrets",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("sealed", Text, nullable=False),
)

# Named values that steps may use without seeing them in a plan. Sealed by SECRETS_KEY.
secrets = Table(
    "secrets",
    metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("sealed", Text, nullable=False),
    Column("tools", Json, nullable=False),
    Column("hosts", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

# `tx` and `seq` are an event's place among all of its user's (`store.events`). SQLite gives no `seq` twice, because it
# is told to (AUTOINCREMENT), which it does for a primary key only.
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("id", Integer, nullable=False),
    Column("user_id", String(36), nullable=False),
    Column("tx", BigInteger, nullable=False, server_default=writing_transaction()),
    Column("line", Text, nullable=False),
    UniqueConstraint("run_id", "id"),
    Index("ix_events_user_id_tx_seq", "user_id", "tx", "seq"),
    sqlite_autoincrement=True,
)

# One row for each failed attempt; a claim fails once at most, so its generation names it.
failures = Table(
    "failures",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("worker_id", String(200)),
    Column("error", Json, nullable=False),
    Column("traceback", Json, nullable=False),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("reason", String(32), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Index("ix_dead_letters_at_run_id", "at", "run_id"),
)

# The messages for webhooks of runs and services, each committed with the state that it reports. `body` is sent as is.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE")),
    Column("user_id", String(36), nullable=False),
    Column("url", String(2048), nullable=False),
    Column("event", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("last_error", ForeignText),
    Column("response_code", Integer),
    Column("service_id", String(36)),
    Index("ix_webhook_deliveries_run_id_id", "run_id", "id"),
    partial_index("ix_webhook_deliveries_service_id", "service_id", where="service_id IS NOT NULL"),
    partial_index("ix_webhook_deliveries_pending", "next_at", where="status = 'pending'"),
)

# Bulk actions and exports that a person has asked for. `user_id` is who asked.
background_jobs = Table(
    "background_jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("action", String(16), nullable=False),
    Column("request", Json, nullable=False),
    Column("status", String(16), nullable=False),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("lease_until", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("expires_at", UtcDateTime),
    Column("error", ForeignText),
    Column("result", Json),
    Column("idempotency_key", String(255)),
    Column("idempotency_digest", String(64)),
    Column("tries", Integer, nullable=False, server_default="0"),
    Index("ix_background_jobs_user_id_id", "user_id", "id"),
    Index("uq_background_jobs_user_id_idempotency_key", "user_id", "idempotency_key", unique=True),
    Index("ix_background_jobs_finished_at", "finished_at"),
    partial_index("ix_background_jobs_unfinished", "lease_until", where="status IN ('queued', 'running')"),
)

# What a bulk action does to each run. `user_id` is the run's. No foreign key to the run: what is removed stays named.
background_job_items = Table(
    "background_job_items",
    metadata,
    Column("job_id", ForeignKey("background_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("run_id", String(36), nullable=False),
    Column("user_id", String(36), nullable=False),
    Column("status", String(16), nullable=False),
    Column("began_at", UtcDateTime),
    Column("detail", ForeignText),
)
