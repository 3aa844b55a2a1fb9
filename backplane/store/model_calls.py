"""The calls of models that a run made: noted before each is made, with its answer after it.

A call is known by the step it was made for, its purpose, and its number within them, so that whoever carries the run on
after a crash, or replays it, finds the same call. A call that is made again takes the place of what was written of it,
but what was spent is added up.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, select, update

from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals, RecordedCall
from backplane.domain.runs import RunError
from backplane.store.database import Database
from backplane.store.tables import model_calls, runs

_TEXTS = ("request", "response")
_BRIEF = [column for column in model_calls.c if column.name not in _TEXTS]


class ModelCalls:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, run_id: str) -> list[RecordedCall]:
        """In the order in which they were begun, without their texts, which may be many megabytes."""
        query = select(*_BRIEF).where(model_calls.c.run_id == run_id).order_by(model_calls.c.started_at)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_call_of(row) for row in rows]

    async def find(self, run_id: str, key: CallKey) -> RecordedCall | None:
        """With its texts."""
        query = select(model_calls).where(_is(run_id, key))
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
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
    changed = connection.execute(update(model_calls).where(_is(run_id, call.key)).values(values))
    if not changed.rowcount:
        connection.execute(insert(model_calls).values(run_id=run_id, **call.key._asdict(), **values))


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
    """`totals`: of all tries, those of earlier holders of the run too. One that stays `started` is to be
    tried again."""
    connection.execute(
        update(model_calls)
        .where(_is(run_id, key))
        .values(
            status=status.value,
            input_tokens=totals.input_tokens,
            output_tokens=totals.output_tokens,
            micro_usd=totals.micro_usd,
            response=None if response is None else dict(response),
            error=error.as_dict() if error else None,
            finished_at=datetime.now(UTC),
        )
    )


def plan_anew(connection: Connection, run_id: str) -> None:
    """Before a run without a plan is tried again: the answers that gave none are not to be taken for an answer again.
    They stay, with what they cost, until they are asked for anew."""
    has_none = select(runs.c.id).where(runs.c.id == run_id, runs.c.plan.is_(None)).exists()
    connection.execute(
        update(model_calls)
        .where(model_calls.c.run_id == run_id, model_calls.c.step_id == "", has_none)
        .values(request_digest="")
    )


def _is(run_id: str, key: CallKey) -> Any:
    return and_(
        model_calls.c.run_id == run_id,
        model_calls.c.step_id == key.step_id,
        model_calls.c.purpose == key.purpose,
        model_calls.c.number == key.number,
    )


def _call_of(row: Row[Any]) -> RecordedCall:
    # A price that is not known is NULL, and so is one of a call that has not ended: of that, nothing was counted.
    counted = row.input_tokens is not None
    return RecordedCall(
        key=CallKey(row.step_id, row.purpose, row.number),
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
