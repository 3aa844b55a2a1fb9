"""GET /agent/logs/{run_id}: a run's events, as pages or as they happen."""

import asyncio
import json
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request, Response
from sse_starlette import EventSourceResponse

from app.auth import CurrentAccess, CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.edge.turns import give_back
from app.errors import responses
from app.schemas.fields import RunId, Text
from app.schemas.runs import EventPage, LogMatch, LogMatches
from app.streams.buffer import Watcher
from app.streams.hub import frame_of
from app.streams.sse import PAGE, EventStream, Position, described, gap, stream
from backplane.domain.events import Event, EventType
from backplane.domain.runs import FINAL, RunStatus
from backplane.errors import InvalidInput

router = Operations(tags=["logs"])

Cursor = Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events with a higher id.")]

PAGES_SEARCHED = 10
"""So many pages of events one search looks through."""

_STREAM: dict[int | str, dict[str, Any]] = {
    200: described(
        "Frames of `id`, `event` and `data`: `data` is one of the schema Event in one line, `event` is its type and "
        "`id` its number; `position` and `progress` have no `id`. A line that begins with a colon says that nothing is "
        "new. `end` is the last frame.",
        id_example="7",
    ),
    204: {"description": "The cursor is at the end of a run that is over: nothing more will come."},
}


@router.get("/agent/logs/{run_id}", responses=responses(404, 422))
async def list_events(
    run_id: RunId,
    user: CurrentUser,
    context: ContextOf,
    after: Cursor = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE, description="At most so many.")] = PAGE,
) -> EventPage:
    """The events of a run after a cursor, oldest first."""
    run = await context.resources.store.runs.get(user.id, run_id)
    found, _ = await context.history.after(run_id, after)
    events = found[:limit]
    last = events[-1].id if events else after
    ended = run.status in FINAL and last >= await context.history.last_id(run_id)
    return EventPage.model_validate(
        {"events": [json.loads(event.line) for event in events], "next_after": last, "ended": ended}
    )


@router.get("/agent/logs/{run_id}/search", responses=responses(404, 422))
async def search_log(
    run_id: RunId,
    user: CurrentUser,
    context: ContextOf,
    q: Annotated[Text, Query(min_length=1, max_length=200, description="Text in the line, in capitals or not.")],
    level: Annotated[
        Literal["info", "warning"] | None, Query(description="Only what the platform says, of this level.")
    ] = None,
    after: Cursor = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE, description="At most so many.")] = 100,
) -> LogMatches:
    """The lines of a run's log that have a text in them, oldest first. One call looks through 5,000 events at most, so
    it may find nothing and still give a `next_after`."""
    await context.resources.store.runs.get(user.id, run_id)
    wanted, matches = q.casefold(), list[LogMatch]()
    for _ in range(PAGES_SEARCHED):
        events, more = await context.history.after(run_id, after)
        for event in events:
            after = event.id
            if (match := _match(event, wanted, level)) is not None:
                matches.append(match)
                if len(matches) == limit:
                    return LogMatches(matches=matches, next_after=after)
        if not events or not more:
            return LogMatches(matches=matches, next_after=None)
        await asyncio.sleep(0)  # others are served meanwhile
    return LogMatches(matches=matches, next_after=after)


def _match(event: Event, wanted: str, level: str | None) -> LogMatch | None:
    """`wanted`: the text, casefolded."""
    if event.type is not EventType.LOG:
        return None
    whole = json.loads(event.line)
    data = whole["data"]
    if wanted not in str(data.get("line", "")).casefold() or (level is not None and data.get("level") != level):
        return None
    return LogMatch.model_validate({**data, "id": event.id, "at": whole["at"]})


@router.get(
    "/agent/logs/{run_id}/stream", responses={**_STREAM, **responses(404, 422)}, response_class=EventSourceResponse
)
async def stream_events(
    request: Request,
    run_id: RunId,
    access: CurrentAccess,
    context: ContextOf,
    after: Cursor = 0,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that was received; goes before `after`.")
    ] = None,
) -> Response:
    """Follow a run by server-sent events. The whole history after the cursor, then each event the moment it is
    written."""
    cursor = _cursor(last_event_id) if last_event_id else after
    run = await context.resources.store.runs.get(access.user.id, run_id)
    watched = await context.hub.open(access.user, run_id, is_queued=run.status is RunStatus.QUEUED)
    opening = b""
    if cursor:
        last = await context.history.last_id(run_id)
        if cursor >= last and run.status in FINAL:
            return Response(status_code=204)
        if cursor > last:
            give_back(request.scope)
            last = await context.history.caught_up(run_id, cursor)
        if cursor > last:
            # Nobody can have seen such an event; going on from the last real one loses nothing.
            missing = gap(run_id, last, last + 1, f"there is no event {cursor} yet; the stream goes on after {last}")
            opening, cursor = frame_of(missing).body, last
    watcher = Watcher(access)
    history = partial(context.history.span, run_id)
    return EventStream(stream(watched, history, Position(cursor), watcher, opening), context.hub, watcher)


def _cursor(last_event_id: str) -> int:
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 10:
        raise InvalidInput("Last-Event-ID: send the id of the last event, a number", field="Last-Event-ID")
    return int(last_event_id)
