"""What is known of a deployment: its revisions, its events, what its replicas print, why it is not as wanted."""

from functools import partial
from typing import Annotated, Any

from fastapi import Header, Query, Response
from sse_starlette import EventSourceResponse

from app.auth import CurrentAccess, CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.routes.deployments import own
from app.schemas.deployments import (
    DeploymentEventPage,
    DeploymentEventView,
    DeploymentExplained,
    DeploymentId,
    DriftView,
    RevisionPage,
    RevisionView,
)
from app.schemas.fields import Limit
from app.streams import deployment_logs
from app.streams.buffer import Watcher
from app.streams.sse import EventStream, Position, kept, stream
from backplane.errors import InvalidInput

router = Operations(tags=["deployments"])

Before = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="`next_cursor` of the page before.")]

_FRAME = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["log", "gap", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Frames of `id`, `event` and `data`. `log` is a line: `data` has the `replica` and the `line`, "
        "and `left_out`: how many lines before it came too fast. `gap` says that lines are not kept any more. A line "
        "that begins with a colon says that nothing is new. `end` comes when the deployment is gone.",
        "content": {
            "text/event-stream": {
                "schema": {},
                "itemSchema": _FRAME,
                "example": 'id: 7\nevent: log\ndata: {"id":7,"type":"log","at":"2026-01-01T00:00:00+00:00",'
                '"data":{"replica":"support-1","line":"listening on 3000","left_out":0}}\n\n',
            }
        },
    },
}


@router.get("/api/deployments/{deployment_id}/revisions", responses=responses(404, 422))
async def list_revisions(
    deployment_id: DeploymentId, user: CurrentUser, context: ContextOf, cursor: Before = None, limit: Limit = 20
) -> RevisionPage:
    """What was wanted of a deployment, and what became of it, the newest first. A revision never changes."""
    there = await own(context, user, deployment_id)
    found = await context.resources.store.deployments.revisions(there.id, cursor, limit + 1)
    page = found[:limit]
    return RevisionPage(
        revisions=[RevisionView.of(revision) for revision in page],
        next_cursor=page[-1].number if len(found) > limit else None,
    )


@router.get("/api/deployments/{deployment_id}/events", responses=responses(404, 422))
async def list_deployment_events(
    deployment_id: DeploymentId, user: CurrentUser, context: ContextOf, cursor: Before = None, limit: Limit = 50
) -> DeploymentEventPage:
    """What was asked of a deployment and what happened to it, the newest first."""
    there = await own(context, user, deployment_id)
    found = await context.resources.store.deployments.events(there.id, cursor, limit + 1)
    page = found[:limit]
    return DeploymentEventPage(
        events=[DeploymentEventView.of(event) for event in page],
        next_cursor=page[-1].number if len(found) > limit else None,
    )


@router.get("/api/deployments/{deployment_id}/explain", responses=responses(404, 422))
async def explain_deployment(deployment_id: DeploymentId, user: CurrentUser, context: ContextOf) -> DeploymentExplained:
    """Why a deployment is not as wanted, in words."""
    return DeploymentExplained.of(await own(context, user, deployment_id))


@router.get("/api/deployments/{deployment_id}/drift", responses=responses(404, 422))
async def show_drift(deployment_id: DeploymentId, user: CurrentUser, context: ContextOf) -> DriftView:
    """What the target has otherwise than it was declared, since somebody changed it."""
    rollout = (await own(context, user, deployment_id)).rollout
    return DriftView(drift=list(rollout.drift), looked_at=rollout.seen_at)


@router.get(
    "/api/deployments/{deployment_id}/logs",
    responses={**_STREAM, **responses(404, 422)},
    response_class=EventSourceResponse,
)
async def stream_deployment_logs(
    deployment_id: DeploymentId,
    access: CurrentAccess,
    context: ContextOf,
    cursor: Annotated[int, Query(ge=0, le=deployment_logs.LARGEST, description="Only lines with a higher number.")] = 0,
    tail: Annotated[
        int | None, Query(ge=0, le=10_000, description="Begin with so many of the newest lines, and no `cursor`.")
    ] = None,
    follow: Annotated[bool, Query(description="Go on with lines as they come; else end after those there are.")] = True,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last line that was received; goes before `cursor`.")
    ] = None,
) -> Response:
    """Follow what all replicas print by server-sent events. The lines that are kept behind the cursor, then each as it
    comes. The newest 10,000 lines are kept, 4 MiB at most."""
    store, user = context.resources.store, access.user
    there = await own(context, user, deployment_id)
    watched = await context.hub.open_deployment_log(user, there.id)
    last = (await store.deployments.last_lines([there.id])).get(there.id, 0)
    opening = b""
    if last_event_id:
        cursor = _cursor(last_event_id)
    elif tail is not None:
        cursor = max(cursor, last - tail)
    if cursor > last:
        # Nobody can have seen such a line; going on from the last real one loses nothing.
        opening, cursor = deployment_logs.no_such_line(there.id, cursor, last), last
    watcher, position = Watcher(access), Position(cursor)
    history = partial(deployment_logs.history, store, there.id)
    chunks = stream(watched, history, position, watcher, opening) if follow else kept(history, position, opening)
    return EventStream(chunks, context.hub, watcher)


def _cursor(last_event_id: str) -> int:
    is_number = last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 19
    if is_number and int(last_event_id) <= deployment_logs.LARGEST:
        return int(last_event_id)
    raise InvalidInput("Last-Event-ID: send the id of the last line, a number", field="Last-Event-ID")
