"""POST /agent/execute: make, start, cancel, retry, fork, replay and look at runs."""

from typing import Annotated, Any

from fastapi import Body, Header, Request, Response

from app.auth import CurrentUser, check_may_change
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.execute import (
    EXAMPLE_PLAN,
    EXAMPLE_PROMPT,
    CancelRun,
    CreateAndStartRun,
    CreateRun,
    ExecuteRequest,
    ForkRun,
    GetRunStatus,
    ReplayRun,
    RetryRun,
    StartRun,
    UncertainStep,
    ValidateRun,
)
from app.schemas.runs import ExecuteResponse, QueueStanding
from app.validation import Validation
from backplane.domain.runs import Run, RunStatus
from backplane.errors import Unavailable

router = Operations(route_class=JsonRoute, tags=["runs"])

_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
_EXAMPLES = {
    "create": {"value": {"action": "create", "prompt": EXAMPLE_PROMPT}},
    "run with a plan": {"value": {"action": "run", "prompt": "count words", "plan": EXAMPLE_PLAN}},
    "run a deployed agent": {"value": {"action": "run", "deployment": "report-writer", "input": {"week": 48}}},
    "start": {"value": {"action": "start", "run_id": _ID}},
    "cancel": {"value": {"action": "cancel", "run_id": _ID}},
    "retry": {"value": {"action": "retry", "run_id": _ID}},
    "retry from a step": {"value": {"action": "retry", "run_id": _ID, "from_step": "count"}},
    "fork": {"value": {"action": "fork", "run_id": _ID, "step": "write"}},
    "replay": {"value": {"action": "replay", "run_id": _ID}},
    "validate": {"value": {"action": "validate", "prompt": EXAMPLE_PROMPT}},
    "status": {"value": {"action": "status", "run_id": _ID}},
}


@router.post("/agent/execute", responses={201: {"model": ExecuteResponse}, **responses(404, 409, 413, 422)})
async def execute(
    body: Annotated[ExecuteRequest, Body(openapi_examples=_EXAMPLES)],
    user: CurrentUser,
    request: Request,
    context: ContextOf,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="For create, run, fork and replay: the same key and body answer the same run; another body is "
            "refused.",
        ),
    ] = None,
) -> ExecuteResponse | Validation:
    """Act on a run. `create`, `run`, `fork` and `replay` answer 201, the others 200; `validate` makes no run."""
    submission = context.submission
    new: dict[str, Any] = {}
    if isinstance(body, ValidateRun):
        return await context.validator.validate(user, body.model_extra or {})
    if not isinstance(body, GetRunStatus):
        check_may_change(request.scope)
    if isinstance(body, CreateRun | CreateAndStartRun):
        response.status_code = 201
        run = await submission.create(user, body, idempotency_key, start=isinstance(body, CreateAndStartRun))
        forecast = await context.validator.forecast(user, body)
        new = {"planner": forecast.planner, "planner_note": forecast.note}
    elif isinstance(body, StartRun):
        run = await submission.start(user, body.run_id)
    elif isinstance(body, CancelRun):
        run = await submission.cancel(user, body.run_id)
    elif isinstance(body, ForkRun):
        response.status_code = 201
        run = await submission.fork(user, body, idempotency_key)
    elif isinstance(body, ReplayRun):
        response.status_code = 201
        run = await submission.replay(user, body.run_id, idempotency_key, execute=body.execute)
    elif isinstance(body, RetryRun) and body.from_step is not None:
        run = await submission.retry_from(user, body.run_id, body.from_step, uncertain_step_is_done=_is_done(body))
    elif isinstance(body, RetryRun):
        run = await submission.retry(user, body.run_id, uncertain_step_is_done=_is_done(body))
    else:
        run = await context.resources.store.runs.get(user.id, body.run_id)
    return ExecuteResponse(run_id=run.id, status=run.status, **new, **await standing_of(context, run))


def _is_done(body: RetryRun) -> bool | None:
    return None if body.uncertain_step is None else body.uncertain_step is UncertainStep.DONE


async def standing_of(context: ApiContext, run: Run) -> dict[str, Any]:
    """The fields of QueueStanding, while the run is queued and the queue answers."""
    if run.status is not RunStatus.QUEUED:
        return {}
    try:
        [standing] = await context.resources.queue.standing([run.id])
    except Unavailable:
        return {}
    return QueueStanding.standing_fields(standing) if standing else {}
