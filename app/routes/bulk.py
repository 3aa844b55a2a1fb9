"""/agent/bulk: one action on all runs that a filter names."""

from typing import Annotated

from fastapi import Body, Depends, Query, Request, Response

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.jobs import page_of_jobs
from app.schemas.fields import Limit
from app.schemas.jobs import (
    BulkCount,
    BulkPage,
    BulkRequest,
    BulkRunPage,
    BulkRunView,
    BulkView,
    IdempotencyKey,
    JobCursor,
    JobId,
)
from backplane.domain.background_jobs import BulkAction, ItemStatus, NewJob
from backplane.domain.runs import new_run_id
from backplane.domain.users import Tier
from backplane.errors import Forbidden, InvalidInput
from backplane.run_actions.actions import idempotency_of

router = Operations(route_class=JsonRoute, tags=["bulk actions"])

_EXAMPLES = {
    "how many failed": {"value": {"action": "retry", "filter": {"statuses": ["failed"]}, "dry_run": True}},
    "retry what failed since then": {
        "value": {"action": "retry", "filter": {"statuses": ["failed"], "created_after": "2026-11-01T00:00:00Z"}}
    },
    "cancel what one agent has": {"value": {"action": "cancel", "filter": {"agent": "reporter"}}},
    "remove what is old": {"value": {"action": "remove", "filter": {"created_before": "2026-10-01T00:00:00Z"}}},
}


async def _nothing_in_the_query(request: Request) -> None:
    """Else `?dry_run=true` would do to all runs what a person only wanted to count."""
    for name in request.query_params:
        raise InvalidInput("the query: this call reads nothing there; put it in the body", field=name[:100])


@router.post(
    "/agent/bulk",
    status_code=202,
    responses={200: {"model": BulkCount}, **responses(403, 404, 409, 413, 422)},
    dependencies=[Depends(_nothing_in_the_query)],
)
async def start_bulk_action(
    body: Annotated[BulkRequest, Body(openapi_examples=_EXAMPLES)],
    user: CurrentUser,
    context: ContextOf,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> BulkView | BulkCount:
    """Cancel, retry, redrive, replay or remove all runs that a filter names. They are one's own. Answers at once; it is
    carried out in the background. `redrive` is for administrators, and means everybody's dead letters; it answers 403
    to others. A dry run answers 200 with the number."""
    owner: str | None = user.id
    if body.action is BulkAction.REDRIVE:
        if user.tier is not Tier.ADMIN:
            raise Forbidden(f"redrive is for users of the tier admin, and {user.name} has the tier {user.tier}")
        owner = None
    wanted = body.filter.as_filter(body.action)
    store = context.resources.store.background_jobs
    if body.dry_run:
        response.status_code = 200
        return BulkCount(action=body.action, runs=await store.count(body.action, wanted, owner))
    context.jobs.check_possible()
    job = await store.create_bulk(
        NewJob(new_run_id(), user.id, idempotency_of(idempotency_key, ["bulk", body.model_dump(mode="json")])),
        body.action,
        wanted,
        owner,
        most_runs=context.settings.bulk_max_runs,
        most_jobs=context.settings.jobs_user_max,
    )
    await context.jobs.put(job.id)
    return BulkView.of(job)


@router.get("/agent/bulk", responses=responses(422))
async def list_bulk_actions(
    user: CurrentUser,
    context: ContextOf,
    cursor: JobCursor = None,
    limit: Limit = 50,
) -> BulkPage:
    """What you have asked for, newest first. It is kept for 30 days after its end."""
    found, following = await page_of_jobs(context.resources.store.background_jobs, user, "bulk", cursor, limit)
    return BulkPage(bulk_actions=[BulkView.of(job) for job in found], next_cursor=following)


@router.get("/agent/bulk/{bulk_id}", responses=responses(404, 422))
async def show_bulk_action(bulk_id: JobId, user: CurrentUser, context: ContextOf) -> BulkView:
    """How far it is."""
    return BulkView.of(await context.resources.store.background_jobs.get(user.id, bulk_id, "bulk"))


@router.get("/agent/bulk/{bulk_id}/runs", responses=responses(404, 422))
async def list_runs_of_bulk_action(
    bulk_id: JobId,
    user: CurrentUser,
    context: ContextOf,
    status: Annotated[ItemStatus | None, Query(description="Only those of which this has come.")] = None,
    cursor: Annotated[int, Query(ge=0, le=10**9, description="`next_cursor` of the page before.")] = 0,
    limit: Limit = 50,
) -> BulkRunPage:
    """What came of each run, oldest run first."""
    store = context.resources.store.background_jobs
    await store.get(user.id, bulk_id, "bulk")
    found = await store.items(bulk_id, status=status, after=cursor - 1, limit=limit + 1)
    return BulkRunPage(
        runs=[BulkRunView.of(item) for item in found[:limit]],
        next_cursor=found[limit].position if len(found) > limit else None,
    )


@router.delete("/agent/bulk/{bulk_id}", responses=responses(404, 422))
async def stop_bulk_action(bulk_id: JobId, user: CurrentUser, context: ContextOf) -> BulkView:
    """Leave undone what is not done yet. What was done stays done."""
    return BulkView.of(await context.resources.store.background_jobs.stop(user.id, bulk_id))
