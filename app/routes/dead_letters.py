"""/agent/dead-letters: the runs that failed for want of something around them. For admins, whoever owns the run."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Query

from app.auth import Admin
from app.context import ContextOf
from app.dead_letters import redrive_oldest
from app.edge.operations import Operations
from app.errors import responses
from app.routes.run_lists import IdBeginning
from app.schemas.dead_letters import DeadLetterPage, DeadLetterSummary, DeadLetterView, FailureView, Purged, Redriven
from app.schemas.fields import Limit, RunId
from app.schemas.runs import RunSummary
from backplane.domain.dead_letters import PROMPT_HEAD_CHARS, DeadCursor, DeadLetter, DeadReason

router = Operations(tags=["dead letters"])

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Microseconds since the epoch, and a run.
Cursor = Annotated[
    str | None,
    Query(
        description="`next_cursor` of the page before.",
        pattern=r"^[0-9]{1,16}_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    ),
]


@router.get("/agent/dead-letters", responses=responses(403, 422))
async def list_dead_letters(
    _: Admin,
    context: ContextOf,
    reason: Annotated[DeadReason | None, Query(description="Only those with this reason.")] = None,
    id_beginning: IdBeginning = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> DeadLetterPage:
    """Everybody's dead letters, newest first."""
    store = context.resources.store.dead_letters
    found = await store.page(reason=reason, beginning=id_beginning, before=_before(cursor), limit=limit + 1)
    listed = found[:limit]
    return DeadLetterPage(
        dead_letters=[DeadLetterSummary(**_fields_of(letter)) for letter in listed],
        next_cursor=_cursor(listed[-1]) if len(found) > limit else None,
    )


@router.get("/agent/dead-letters/{run_id}", responses=responses(403, 404, 422))
async def show_dead_letter(run_id: RunId, _: Admin, context: ContextOf) -> DeadLetterView:
    """A dead letter, with what each attempt of its run died of."""
    store = context.resources.store.dead_letters
    letter = await store.get(run_id)
    failures = [FailureView.of(failure, with_traceback=True) for failure in await store.failures(run_id)]
    return DeadLetterView(**_fields_of(letter), failures=failures)


@router.post("/agent/dead-letters/{run_id}/redrive", responses=responses(403, 404, 409, 413, 422))
async def redrive_dead_letter(run_id: RunId, _: Admin, context: ContextOf) -> RunSummary:
    """Queue the run of a dead letter again, with all its attempts. Completed steps are not repeated."""
    run = await context.submission.redrive(run_id)
    return RunSummary(**{**RunSummary.fields_of(run), "prompt": run.prompt[:PROMPT_HEAD_CHARS]})


@router.post("/agent/dead-letters/redrive", responses=responses(403, 409, 413, 422))
async def redrive_dead_letters(
    _: Admin,
    context: ContextOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many in this call.")] = 100,
) -> Redriven:
    """Queue the runs of the oldest dead letters again. Up to the limit, or until the queue is full. `left`
    says how many there still are."""
    redriven = await redrive_oldest(context, limit)
    return Redriven(redriven=redriven, left=await context.resources.store.dead_letters.count())


@router.delete("/agent/dead-letters/{run_id}", responses=responses(403, 404, 422))
async def purge_dead_letter(run_id: RunId, _: Admin, context: ContextOf) -> Purged:
    """Forget a dead letter. Its run stays as it is, failed, and its user may still retry it."""
    await context.resources.store.dead_letters.purge(run_id)
    return Purged(purged=1)


@router.delete("/agent/dead-letters", responses=responses(403))
async def purge_dead_letters(_: Admin, context: ContextOf) -> Purged:
    """Forget all dead letters. Their runs stay failed."""
    return Purged(purged=await context.resources.store.dead_letters.purge_all())


def _fields_of(letter: DeadLetter) -> dict[str, Any]:
    return {
        "run_id": letter.run_id,
        "reason": letter.reason,
        "at": letter.at,
        "attempts": letter.attempts,
        "crashes": letter.crashes,
        "user_id": letter.user_id,
        "user": letter.user_name,
        "created_at": letter.created_at,
        "prompt": letter.prompt_head,
        "error": letter.error.as_dict() if letter.error else None,
    }


def _cursor(letter: DeadLetter) -> str:
    return f"{(letter.at - EPOCH) // timedelta(microseconds=1)}_{letter.run_id}"


def _before(cursor: str | None) -> DeadCursor | None:
    if cursor is None:
        return None
    microseconds, _, run_id = cursor.partition("_")
    return DeadCursor(EPOCH + timedelta(microseconds=int(microseconds)), run_id)
