"""/agent/decisions: what one's runs ask, and the answers that let them go on."""

import json
from typing import Annotated, Any

from fastapi import Body, Query, Request

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.audit import note
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.decisions import (
    Answer,
    Approve,
    DecideRequest,
    DecisionId,
    DecisionPage,
    DecisionView,
)
from app.schemas.fields import Limit, RunId
from backplane.domain.decisions import Decision, DecisionStatus
from backplane.errors import TooLarge

router = Operations(route_class=JsonRoute, tags=["decisions"])

ARGUMENTS_MAX_BYTES = 256 * 1024
_EXAMPLES: Any = {
    "approve": {"value": {"decision": "approve"}},
    "approve with other arguments": {"value": {"decision": "approve", "arguments": {"script": "wc -l words.txt"}}},
    "reject": {"value": {"decision": "reject", "reason": "not on a Friday"}},
    "answer": {"value": {"decision": "answer", "text": "the blue one"}},
    "raise the budget": {"value": {"decision": "approve", "budget": {"usd": 1.0}}},
}

Status = Annotated[DecisionStatus | None, Query(description="Only those in this state.")]
Cursor = Annotated[DecisionId | None, Query(description="`next_cursor` of the page before.")]


@router.get("/agent/decisions", responses=responses(422))
async def list_decisions(
    user: CurrentUser, context: ContextOf, status: Status = None, cursor: Cursor = None, limit: Limit = 50
) -> DecisionPage:
    """What one's runs ask and asked. `status=pending` for what is to be decided."""
    decisions = context.resources.store.decisions
    return _page(await decisions.page(user.id, status=status, before=cursor, limit=limit + 1), limit)


@router.get("/agent/runs/{run_id}/decisions", responses=responses(404, 422))
async def list_decisions_of_run(
    run_id: RunId,
    user: CurrentUser,
    context: ContextOf,
    status: Status = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> DecisionPage:
    """What one run asks and asked."""
    store = context.resources.store
    await store.runs.get(user.id, run_id)
    found = await store.decisions.page(user.id, run_id=run_id, status=status, before=cursor, limit=limit + 1)
    return _page(found, limit)


@router.post("/agent/runs/{run_id}/decisions/{decision_id}", responses=responses(404, 409, 413, 422))
async def decide(
    run_id: RunId,
    decision_id: DecisionId,
    body: Annotated[DecideRequest, Body(openapi_examples=_EXAMPLES)],
    user: CurrentUser,
    request: Request,
    context: ContextOf,
) -> DecisionView:
    """Answer what a run asks. A run that waits goes on by itself. The same answer again changes nothing; another one is
    refused."""
    status, answer = _answer(body)
    note(request.scope, decision=status.value)
    made = await context.submission.decide(user, run_id, decision_id, status, answer)
    return DecisionView.of(made)


def _answer(body: DecideRequest) -> tuple[DecisionStatus, dict[str, Any]]:
    """As `DecisionStatus` has it."""
    match body:
        case Answer():
            return DecisionStatus.ANSWERED, {"text": body.text}
        case Approve():
            answer: dict[str, Any] = {}
            if body.arguments is not None:
                if len(json.dumps(body.arguments)) > ARGUMENTS_MAX_BYTES:
                    raise TooLarge(f"arguments: at most {ARGUMENTS_MAX_BYTES} bytes of JSON; use a file instead")
                answer["arguments"] = body.arguments
            if body.budget is not None:
                answer["budget"] = body.budget.model_dump(exclude_none=True)
            return DecisionStatus.APPROVED, answer
    return DecisionStatus.REJECTED, {"reason": body.reason}


def _page(found: list[Decision], limit: int) -> DecisionPage:
    listed = [DecisionView.of(decision) for decision in found[:limit]]
    return DecisionPage(decisions=listed, next_cursor=listed[-1].decision_id if len(found) > limit else None)
