"""/api/v1/events: the event bus. Post events, read those that are kept, follow those that come."""

from functools import partial
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from sse_starlette import EventSourceResponse

from app.auth import CurrentAccess, CurrentCaller, CurrentUser
from app.bus.reading import BATCH, JSON, STRUCTURED, events_of
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.bus import EXAMPLE, BusPage, PublishedBatch, PublishedEvent, Sources, Subjects, TypePatterns
from app.streams import bus
from app.streams.buffer import Watcher
from app.streams.sse import EventStream, Position, stream
from backplane.domain.bus import BATCH_MAX, EventFilter
from backplane.errors import InvalidInput

router = Operations(tags=["events"])

NOW = "now"

_EVENT = {"$ref": "#/components/schemas/CloudEventView"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "description": f"Also {STRUCTURED}, {BATCH}, and any body with the event's attributes in headers `ce-…`.",
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "anyOf": [_EVENT, {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": BATCH_MAX}],
                },
                "example": {key: EXAMPLE[key] for key in ("id", "source", "type", "data")},
            },
        },
    }
}
_THERE_ALREADY: dict[int | str, dict[str, Any]] = {
    200: {"description": "All were there already.", "model": PublishedEvent | PublishedBatch}
}
_FRAME = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": _EVENT},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Frames of `id`, `event` and `data`: `data` is the event as JSON in one line, `event` its type, "
        "and `id` its cursor. A frame `gap` says that events are missing. A line that begins with a colon says that "
        "nothing is new. The stream has no end.",
        "content": {
            "text/event-stream": {
                "schema": {},
                "itemSchema": _FRAME,
                "example": 'id: 17\nevent: order.created\ndata: {"specversion":"1.0","id":"9b0f6c1e",'
                '"source":"/shop","type":"order.created"}\n\n',
            }
        },
    },
}


@router.post(
    "/api/v1/events",
    status_code=201,
    responses={
        200: {"description": "All were there already.", "model": PublishedEvent | PublishedBatch},
        **responses(409, 413, 422),
    },
    openapi_extra=_BODY,
)
async def publish_events(
    request: Request, caller: CurrentCaller, context: ContextOf, response: Response
) -> PublishedEvent | PublishedBatch:
    """Publish an event, or a list of up to a hundred at once. CloudEvents 1.0: as JSON, as a batch, or with the
    attributes in headers that begin with `ce-` and the data as the body.

    All events of a call are stored, or none. One that comes again, by its source and id, is stored once and answered
    with 200. Each event of a batch counts as a call."""
    sent = await events_of(request.headers, await request.body())
    events = sent if isinstance(sent, list) else [sent]
    await context.publisher.count(caller.rate_name, len(events) - 1)
    published = [PublishedEvent.of(each) for each in await context.publisher.publish(caller.user.id, events, by="user")]
    if all(each.duplicate for each in published):
        response.status_code = 200
    return PublishedBatch(events=published) if isinstance(sent, list) else published[0]


@router.get("/api/v1/events", response_model=BusPage, responses=responses(422))
async def list_published_events(
    user: CurrentUser,
    context: ContextOf,
    after: Annotated[int, Query(ge=0, le=bus.LARGEST, description="Only events behind this cursor.")] = 0,
    limit: Annotated[int, Query(ge=1, le=bus.PAGE, description="At most so many.")] = 100,
    type: TypePatterns = [],  # noqa: B006 - FastAPI makes a new one for each call
    source: Sources = [],  # noqa: B006 - the same
    subject: Subjects = [],  # noqa: B006 - the same
) -> Response:
    """Your events behind a cursor, in the order in which they were stored. Those that you, your hooks and your runs
    have published."""
    wanted = EventFilter.of(type, source, subject)
    page = await context.resources.store.bus.page(user.id, after, limit, wanted)
    # The events are JSON already.
    lines = ",".join([event.line for event in page.events])
    more, missing = ("true" if flag else "false" for flag in (page.more, page.missing))
    body = f'{{"events":[{lines}],"cursor":{page.until},"has_more":{more},"missing":{missing}}}'
    return Response(body.encode(), media_type=JSON)


@router.get("/api/v1/events/stream", responses={**_STREAM, **responses(422)}, response_class=EventSourceResponse)
async def stream_published_events(
    access: CurrentAccess,
    context: ContextOf,
    after: Annotated[
        str | None,
        Query(max_length=20, description="Only events behind this cursor; `now`: only what comes. Else: all."),
    ] = None,
    type: TypePatterns = [],  # noqa: B006 - the same
    source: Sources = [],  # noqa: B006 - the same
    subject: Subjects = [],  # noqa: B006 - the same
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that was received; goes before `after`.")
    ] = None,
) -> Response:
    """Follow your events by server-sent events. Those that are kept behind the cursor, then each one when it is
    stored."""
    wanted, store, user = EventFilter.of(type, source, subject), context.resources.store, access.user
    cursor, opening = 0, b""
    if last_event_id:
        cursor = _cursor(last_event_id, "Last-Event-ID")
    elif after and after != NOW:
        cursor = _cursor(after, "after")
    # The subscription comes first, so that nothing after the present is missed.
    watched = await context.hub.open_bus(user, wanted)
    if after == NOW and not last_event_id:
        # An id alone is no event, but what a client goes on from that is cut off before the first.
        cursor = await store.bus.present(user.id)
        opening = f"id: {cursor}\n\n".encode()
    watcher = Watcher(access)
    chunks = stream(watched, partial(bus.history, store, user.id, wanted), Position(cursor), watcher, opening)
    return EventStream(chunks, context.hub, watcher)


def _cursor(text: str, field: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= bus.LARGEST:
        return int(text)
    raise InvalidInput(f"{field}: send the id of the last event, a number", field=field)
