"""What models took, by day, filled from the calls that are there."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

# Times are UTC; SQLite keeps them as text that begins with the day.
_DAY = {
    "postgresql": "(coalesce(c.finished_at, c.started_at) AT TIME ZONE 'UTC')::date",
    "sqlite": "substr(coalesce(c.finished_at, c.started_at), 1, 10)",
}
_FILL = """
INSERT INTO model_usage
  (day, user_id, agent, model, pool, role, calls, unpriced, input_tokens, output_tokens, micro_usd)
SELECT {day}, r.user_id, r.agent, c.server || '/' || c.model, coalesce(a.pool, ''), coalesce(p.role, ''),
  sum(CASE WHEN c.status = 'started' THEN 0 ELSE 1 END),
  sum(CASE WHEN c.micro_usd IS NULL AND c.status <> 'started' THEN 1 ELSE 0 END),
  sum(c.input_tokens), sum(c.output_tokens), sum(coalesce(c.micro_usd, 0))
FROM model_calls c JOIN runs r ON r.id = c.run_id
  LEFT JOIN agents a ON a.id = r.agent_id LEFT JOIN agent_pools p ON p.name = a.pool
WHERE c.input_tokens IS NOT NULL
GROUP BY 1, 2, 3, 4, 5, 6
"""


def upgrade() -> None:
    op.create_table(
        "model_usage",
        sa.Column("user_id", sa.String(36), primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("model", sa.String(265), primary_key=True),
        sa.Column("agent", sa.String(64), primary_key=True),
        sa.Column("pool", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(64), primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("unpriced", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("micro_usd", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_model_usage_day", "model_usage", ["day"])
    op.execute(_FILL.format(day=_DAY[op.get_bind().dialect.name]))


def downgrade() -> None:
    op.drop_table("model_usage")
