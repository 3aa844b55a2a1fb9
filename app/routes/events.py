"""GET /agent/events: the events of all of a user's runs, in one stream."""

from functools import partial
from typing import Annotated, Any

from fastapi import Header, Query, Response
from sse_starlette import EventSourceResponse

from app.auth import CurrentAccess
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.streams import feed
from app.streams.buffer import Watcher
from app.streams.sse import EventStream, Position, described, stream
from backplane.domain.events import EventType, Place, encode

router = Operations(tags=["logs"])

NOW = "now"

_STREAM: dict[int | str, dict[str, Any]] = {
    200: described(
        "Frames of `id`, `event` and `data`: `data` is one of the schema Event in one line, with the run's id and its "
        "number in that run's log; `id` is a cursor of this stream, and `position` has none. An `end` is that of a "
        "run; the stream goes on.",
        id_example="0-4711",
    ),
}


@router.get("/agent/events", responses={**_STREAM, **responses(422)}, response_class=EventSourceResponse)
async def stream_all_events(
    access: CurrentAccess,
    context: ContextOf,
    after: Annotated[
        str | None,
        Query(max_length=40, description="Only events behind this cursor; `now`: only what comes. Else: all."),
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that was received; goes before `after`.")
    ] = None,
) -> Response:
    """Follow all your runs by server-sent events. The whole history after the cursor, then each event when it
    is stored.

    Events of one run are in order; those of different runs are in the order in which they were stored.
    """
    store, user = context.resources.store, access.user
    if last_event_id:
        cursor = feed.cursor_of(last_event_id, "Last-Event-ID")
    elif after and after != NOW:
        cursor = feed.cursor_of(after, "after")
    else:
        cursor = Place(0, 0)
    # The subscription comes first, so that nothing after the present is missed.
    watched = await context.hub.open_feed(user)
    opening = b""
    present = await store.events.present()
    if after == NOW and not last_event_id:
        # An id alone is no event, but what a client goes on from that is cut off before the first.
        cursor = present
        opening = f"id: {feed.cursor_text(cursor)}\n\n".encode()
    elif cursor > present:
        # Such a place was never given, or by a database that was put back from a copy.
        reason = f"there is no event {feed.cursor_text(cursor)} yet; the stream goes on with what comes"
        cursor = present
        gap = encode("", 0, EventType.GAP, {"after": 0, "before": 1, "reason": reason})
        opening = feed.frame_of(cursor, gap).body
    watcher = Watcher(access)
    chunks = stream(watched, partial(feed.history, store, user.id), Position(cursor), watcher, opening)
    return EventStream(chunks, context.hub, watcher)
