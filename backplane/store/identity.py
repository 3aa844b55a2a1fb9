"""Which step a step, a question or a model call belongs to, in SQL.

Since 0014 columns say it. A worker of an older release leaves them empty, also while a rolling upgrade lasts. In its
rows only the ids say it: `{parent}/{round}.…` of a step, `{step}/{round}` of a model call, and of a call for another
plan one number that is made of three (`CallKey.number`). Ids are taken apart here and nowhere else. Once no older
worker can be left, the columns can be read as they are, and this file can go.
"""

from typing import Any

from sqlalchemy import ColumnElement, Integer, String, case, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from backplane.domain.model_calls import CALLS_A_FAILURE, FAILURES_A_VERSION
from backplane.store.tables import decisions, model_calls, steps


class step_above(FunctionElement[str]):
    """What is before the slash of an id; NULL where it has none."""

    type = String()
    inherit_cache = True


class round_of_id(FunctionElement[int]):
    """The whole number after the slash of an id; NULL where it has no slash."""

    type = Integer()
    inherit_cache = True


@compiles(step_above)
def _(element: step_above, compiler: Any, **options: Any) -> str:
    id = compiler.process(element.clauses, **options)
    return f"nullif(substr({id}, 1, instr({id}, '/') - 1), '')"


@compiles(step_above, "postgresql")
def _(element: step_above, compiler: Any, **options: Any) -> str:
    return f"substring({compiler.process(element.clauses, **options)} from '^([^/]+)/')"


@compiles(round_of_id)
def _(element: round_of_id, compiler: Any, **options: Any) -> str:
    id = compiler.process(element.clauses, **options)
    return f"CASE WHEN instr({id}, '/') > 0 THEN CAST(substr({id}, instr({id}, '/') + 1) AS INTEGER) END"


@compiles(round_of_id, "postgresql")
def _(element: round_of_id, compiler: Any, **options: Any) -> str:
    return f"CAST(substring({compiler.process(element.clauses, **options)} from '/([0-9]{{1,9}})') AS integer)"


STEP_PARENT: ColumnElement[str | None] = func.coalesce(steps.c.parent, step_above(steps.c.step_id))
STEP_ROUND: ColumnElement[int | None] = func.coalesce(steps.c.round, round_of_id(steps.c.step_id))

DECISION_PARENT: ColumnElement[str | None] = func.coalesce(decisions.c.parent, step_above(decisions.c.step_id))

_IS_REPLAN = model_calls.c.purpose == "replan"
_COUNTED = model_calls.c.number - 1
CALL_STEP: ColumnElement[str] = func.coalesce(
    model_calls.c.step, step_above(model_calls.c.step_id), model_calls.c.step_id
)
CALL_ROUND: ColumnElement[int] = func.coalesce(
    model_calls.c.round,
    case((_IS_REPLAN, _COUNTED // CALLS_A_FAILURE % FAILURES_A_VERSION), else_=round_of_id(model_calls.c.step_id)),
    0,
)
CALL_PLAN_VERSION: ColumnElement[int | None] = func.coalesce(
    model_calls.c.plan_version, case((_IS_REPLAN, _COUNTED // (CALLS_A_FAILURE * FAILURES_A_VERSION) + 1))
)
CALL_ORDINAL: ColumnElement[int] = func.coalesce(
    model_calls.c.ordinal, case((_IS_REPLAN, _COUNTED % CALLS_A_FAILURE + 1), else_=model_calls.c.number)
)
