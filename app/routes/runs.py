"""GET /agent/runs: what became of one's runs."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.auth import CurrentUser
from app.errors import responses
from app.models import RunId, RunPage, RunSummary, RunView, StepView
from app.routes.execute import standing_of
from app.services import ServicesOf
from backplane.runs import RunStatus

router = APIRouter(tags=["runs"])

LISTED_PROMPT_CHARS = 200


@router.get("/agent/runs", responses=responses(422))
async def list_runs(
    user: CurrentUser,
    services: ServicesOf,
    status: Annotated[RunStatus | None, Query(description="Only runs in this state.")] = None,
    cursor: Annotated[RunId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
) -> RunPage:
    """One's runs, newest first."""
    found = await services.resources.store.runs.page(user.id, status=status, before=cursor, limit=limit + 1)
    listed = [
        RunSummary(**{**RunSummary.fields_of(run), "prompt": run.prompt[:LISTED_PROMPT_CHARS]}) for run in found[:limit]
    ]
    return RunPage(runs=listed, next_cursor=listed[-1].run_id if len(found) > limit else None)


@router.get("/agent/runs/{run_id}", responses=responses(404, 422))
async def show_run(run_id: RunId, user: CurrentUser, services: ServicesOf) -> RunView:
    """A run with its plan, its steps and their results."""
    store = services.resources.store
    run = await store.runs.get(user.id, run_id)
    steps = await store.journal.steps(run_id)
    position, wait = await standing_of(services, run)
    return RunView(
        **RunSummary.fields_of(run),
        timeout_seconds=run.timeout_seconds,
        max_retries=run.max_retries,
        cancel_requested=run.cancel_requested_at is not None,
        plan=run.plan or run.given_plan,
        steps=[
            StepView(
                id=step.step_id,
                title=step.title,
                tool=step.tool,
                status=step.status,
                tries=step.tries,
                started_at=step.started_at,
                finished_at=step.finished_at,
                result=step.result,
            )
            for step in steps
        ],
        position=position,
        estimated_wait_seconds=wait,
    )
