"""Where a step, a question and a model call belong, as columns: before, only their ids said it.

`{parent}/{round}.{turn}.{n}` was the id of a step below another one, `{step}/{round}` the step of a model call, and the
number of a call for another plan was made of the version to replace, the tries that had failed, and its own count. The
rows that are there are filled. The ids stay as they are: people see them, and older releases find rows by them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

COLUMNS: dict[str, dict[str, Any]] = {
    "steps": {"parent": sa.String(64), "round": sa.Integer},
    "decisions": {"parent": sa.String(64)},
    "model_calls": {"step": sa.String(128), "round": sa.Integer, "plan_version": sa.Integer, "ordinal": sa.Integer},
}

# As they were at this revision: a migration must not change with the code.
ABOVE = {
    "postgresql": "substring(step_id from '^([^/]+)/')",
    "sqlite": "nullif(substr(step_id, 1, instr(step_id, '/') - 1), '')",
}
ROUND = {
    "postgresql": "CAST(substring(step_id from '/([0-9]{1,9})') AS integer)",
    "sqlite": "CASE WHEN instr(step_id, '/') > 0 THEN CAST(substr(step_id, instr(step_id, '/') + 1) AS INTEGER) END",
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind))
    above, round = (parts[op.get_bind().dialect.name] for parts in (ABOVE, ROUND))
    for statement in (
        f"UPDATE steps SET parent = {above}, round = {round} WHERE step_id LIKE '%/%'",  # noqa: S608 - from above
        f"UPDATE decisions SET parent = {above} WHERE step_id LIKE '%/%'",  # noqa: S608
        f"""
        UPDATE model_calls SET step = coalesce({above}, step_id), round = coalesce({round}, 0), ordinal = number
        WHERE purpose <> 'replan'""",  # noqa: S608
        """
        UPDATE model_calls SET step = step_id, plan_version = (number - 1) / 100000 + 1,
          round = (number - 1) / 100 % 1000, ordinal = (number - 1) % 100 + 1
        WHERE purpose = 'replan'""",
    ):
        op.execute(sa.text(statement))


def downgrade() -> None:
    for table, columns in COLUMNS.items():
        for name in columns:
            op.drop_column(table, name)
