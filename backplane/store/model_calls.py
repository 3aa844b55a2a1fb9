"""The calls of models that a run made: noted before each is made, with its answer after it.

A call that is made again takes the place of what was written of it, but what was spent is added up.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, insert, select, update

from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals, RecordedCall
from backplane.domain.runs import RunError
from backplane.store.database import Database
from backplane.store.identity import CALL_ORDINAL, CALL_PLAN_VERSION, CALL_ROUND, CALL_STEP
from backplane.store.tables import model_calls, runs

_TEXTS = [model_calls.c.request, model_calls.c.response]
_KEY = [
    CALL_STEP.label("step"),
    model_calls.c.purpose,
    CALL_ORDINAL.label("ordinal"),
    CALL_ROUND.label("round"),
    CALL_PLAN_VERSION.label("plan_version"),
]
_ELSEWHERE = {"run_id", "step_id", "number", "request", "response", *CallKey._fields}
_BRIEF = [*_KEY, *(column for column in model_calls.c if column.name not in _ELSEWHERE)]

# Built once: to build a statement takes longer than to run it.
IS_CALL = and_(
    model_calls.c.run_id == bindparam("of_run"),
    model_calls.c.step_id == bindparam("of_step"),
    model_calls.c.purpose == bindparam("of_purpose"),
    model_calls.c.number == bindparam("of_number"),
)
_OF_RUN = select(*_BRIEF).where(model_calls.c.run_id == bindparam("of_run")).order_by(model_calls.c.started_at)
_FIND = select(*_BRIEF, *_TEXTS).where(IS_CALL)
_UPDATE = update(model_calls).where(IS_CALL)
_INSERT = insert(model_calls)


class ModelCalls:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, run_id: str) -> list[RecordedCall]:
        """The run's calls in the order in which they were begun, without their texts, which may be many megabytes."""
        rows = await self._database.read(lambda connection: connection.execute(_OF_RUN, {"of_run": run_id}).all())
        return [_call_of(row) for row in rows]

    async def find(self, run_id: str, key: CallKey) -> RecordedCall | None:
        """One call with its texts."""
        named = named_call(run_id, key)
        row = await self._database.read(lambda connection: connection.execute(_FIND, named).one_or_none())
        return _call_of(row) if row else None


def begin_model_call(connection: Connection, run_id: str, generation: int, call: BeginningCall) -> None:
    """Note that a try is about to be made. Called again, it changes nothing but the time."""
    values = {
        "id": call.id,
        "generation": generation,
        "status": CallStatus.STARTED.value,
        "server": call.server,
        "model": call.model,
        "request": dict(call.request),
        "request_digest": call.request_digest,
        "started_at": datetime.now(UTC),
        "finished_at": None,
        "response": None,
        "error": None,
    }
    key = call.key
    if not connection.execute(_UPDATE, {**named_call(run_id, key), **values}).rowcount:
        names = {"run_id": run_id, "step_id": key.step_id, "number": key.number}
        connection.execute(_INSERT, {**names, **key._asdict(), **values})


def end_model_call(
    connection: Connection,
    run_id: str,
    key: CallKey,
    status: CallStatus,
    totals: CallTotals,
    *,
    response: Mapping[str, Any] | None = None,
    error: RunError | None = None,
) -> None:
    """Write how a try ended. `totals`: of all tries, also on earlier workers. A call that stays `started` is to be
    tried again."""
    values = {
        "status": status.value,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "micro_usd": totals.micro_usd,
        "response": None if response is None else dict(response),
        "error": error.as_dict() if error else None,
        "finished_at": datetime.now(UTC),
    }
    connection.execute(_UPDATE, {**named_call(run_id, key), **values})


def plan_anew(connection: Connection, run_id: str) -> None:
    """Prepare another attempt of a run without a plan: the recorded answers that gave no plan are not used again. They
    stay, with what they cost, until the calls are made anew."""
    has_none = select(runs.c.id).where(runs.c.id == run_id, runs.c.plan.is_(None)).exists()
    connection.execute(
        update(model_calls)
        .where(model_calls.c.run_id == run_id, model_calls.c.step_id == "", has_none)
        .values(request_digest="")
    )


def named_call(run_id: str, key: CallKey) -> dict[str, Any]:
    """The values of `IS_CALL`."""
    return {"of_run": run_id, "of_step": key.step_id, "of_purpose": key.purpose, "of_number": key.number}


def _call_of(row: Row[Any]) -> RecordedCall:
    # A price that is not known is NULL, and so is one of a call that has not ended: of that, nothing was counted.
    counted = row.input_tokens is not None
    return RecordedCall(
        key=CallKey(row.step, row.purpose, row.ordinal, row.round, row.plan_version),
        id=row.id,
        generation=row.generation,
        status=CallStatus(row.status),
        server=row.server,
        model=row.model,
        request_digest=row.request_digest,
        totals=CallTotals(row.input_tokens, row.output_tokens, row.micro_usd) if counted else CallTotals(),
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=RunError(**row.error) if row.error else None,
        request=getattr(row, "request", None),
        response=getattr(row, "response", None),
    )
