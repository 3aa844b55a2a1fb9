"""GPU machines, what they cost, and the model servers on them."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "gpu_machines",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wanted_by", sa.String(36), nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("state_since", UTC_TIME, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("micro_usd_per_hour", sa.BigInteger, nullable=False),
        sa.Column("offer", sa.String(64)),
        sa.Column("contract", sa.String(64)),
        sa.Column("url", sa.String(2048)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("paid_since", UTC_TIME),
        sa.Column("charged_until", UTC_TIME),
        sa.Column("charged_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("health_tries", sa.Integer, nullable=False),
        sa.Column("checked_at", UTC_TIME),
        sa.Column("missing_since", UTC_TIME),
        sa.Column("ready_at", UTC_TIME),
        sa.Column("stop_reason", sa.Text),
        sa.Column("ended_at", UTC_TIME),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_index("ix_gpu_machines_created_at", "gpu_machines", ["created_at"])
    _partial("ix_gpu_machines_open", ["created_at"], "ended_at IS NULL")
    _partial(
        "uq_gpu_machines_contract", ["provider", "contract"], "contract IS NOT NULL AND ended_at IS NULL", unique=True
    )
    op.create_table(
        "gpu_charges",
        sa.Column("machine_id", sa.String(12), sa.ForeignKey("gpu_machines.id"), primary_key=True),
        sa.Column("since", UTC_TIME, primary_key=True),
        sa.Column("until", UTC_TIME, nullable=False),
        sa.Column("micro_usd", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_gpu_charges_since", "gpu_charges", ["since"])
    op.create_table(
        "model_servers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("pool", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("machine_id", sa.String(12), sa.ForeignKey("gpu_machines.id"), nullable=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("gpu_type", sa.String(64), nullable=False),
        sa.Column("micro_usd_per_hour", sa.BigInteger, nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False),
    )
    op.create_table(
        "gpu_status",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
    )


def _partial(name: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(
        name, "gpu_machines", columns, unique=unique, postgresql_where=sa.text(where), sqlite_where=sa.text(where)
    )


def downgrade() -> None:
    for table in ("gpu_status", "model_servers", "gpu_charges", "gpu_machines"):
        op.drop_table(table)
