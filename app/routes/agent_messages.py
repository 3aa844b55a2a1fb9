"""/api/v1/agents/{id}/messages and /stream: talking with an agent. A message is a run, so all that can be done with
runs can be done with it."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from sse_starlette import EventSourceResponse

from app.agents.answers import answered
from app.auth import CurrentAccess, CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.edge.turns import give_back
from app.errors import responses
from app.schemas.agents import AgentKey, MessagePage, MessageView, NewMessage
from app.schemas.fields import Limit
from app.streams.agents import LARGEST, TurnCursor, TurnSource, gap_frame, turn_cursor, turns
from app.streams.buffer import Watcher
from app.streams.sse import EventStream, described
from backplane.domain.agents import Agent
from backplane.domain.runs import FINAL
from backplane.errors import TooManyStreams, Unavailable
from backplane.settings import fixed

router = Operations(route_class=JsonRoute, tags=["agents"])

NOW = "now"

_STREAM: dict[int | str, dict[str, Any]] = {
    200: described(
        "Frames of `id`, `event` and `data`: `data` is one of the schema Event in one line, with the run's id and its "
        "number in that run's log; `id` is `<turn>-<number>`, a cursor of this stream; `position` and `progress` have "
        "none. An `end` is that of a turn; the stream goes on with the next one.",
        id_example="3-7",
    ),
}


@router.post(
    "/api/v1/agents/{agent_id}/messages",
    status_code=202,
    responses={
        200: {"description": "It was over within `wait_seconds`.", "model": MessageView},
        **responses(404, 409, 413, 422),
    },
)
async def send_message(
    request: Request,
    agent_id: AgentKey,
    new: NewMessage,
    access: CurrentAccess,
    context: ContextOf,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="The same key and body answer the same message; another body is refused.",
        ),
    ] = None,
) -> MessageView:
    """Send an agent a message. It is a run, whose id is answered; an agent comes to one message after another.

    429 `mailbox_full`: 1,000 wait for this agent already."""
    run = await context.agent_actions.send(access.user, agent_id, new, idempotency_key)
    if new.wait_seconds:
        with suppress(TooManyStreams, Unavailable):  # the message is taken, and who is refused would send it again
            run = await answered(context.hub, context.resources.store, access, request.scope, run, new.wait_seconds)
        if run.status in FINAL:
            response.status_code = 200
    return MessageView.of(run)


@router.get("/api/v1/agents/{agent_id}/messages", responses=responses(404, 422))
async def list_messages(
    agent_id: AgentKey,
    user: CurrentUser,
    context: ContextOf,
    oldest_first: Annotated[bool, Query(description="From the first one on; else the newest first.")] = False,
    cursor: Annotated[
        int | None, Query(ge=0, le=LARGEST, description="`next_cursor` of the page before: a turn.")
    ] = None,
    limit: Limit = 50,
) -> MessagePage:
    """The conversation with an agent. Its messages with their answers, those in its mailbox too. A page of large ones
    has fewer than `limit`."""
    agent = await context.resources.store.agents.get(user.id, agent_id)
    shown, is_more = await context.resources.store.agent_messages.page(
        agent.id,
        after_turn=cursor,
        limit=limit,
        newest_first=not oldest_first,
        most_bytes=fixed.AGENT_MESSAGES_PAGE_BYTES,
    )
    return MessagePage(
        messages=[MessageView.of(run) for run in shown],
        next_cursor=shown[-1].turn if shown and is_more else None,
    )


@router.get(
    "/api/v1/agents/{agent_id}/stream",
    responses={**_STREAM, **responses(404, 422)},
    response_class=EventSourceResponse,
)
async def stream_agent(
    request: Request,
    agent_id: AgentKey,
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
    """Follow all turns of an agent by server-sent events. One turn after the other, without an end."""
    cursor = TurnCursor(0, 0)
    if last_event_id:
        cursor = turn_cursor(last_event_id, "Last-Event-ID")
    elif after and after != NOW:
        cursor = turn_cursor(after, "after")
    agent = await context.resources.store.agents.get(access.user.id, agent_id)
    # The subscription comes first, so that nothing after the present is missed.
    mailbox = await context.hub.open_mailbox(access.user, agent.id)
    opening = b""
    if after == NOW and not last_event_id:
        # An id alone is no event, but what a client goes on from that is cut off before the first.
        cursor = await _present(context, agent)
        opening = f"id: {cursor}\n\n".encode()
    elif cursor.turn and (last := await _last_before(context, request, agent, cursor)) != cursor:
        opening, cursor = gap_frame(cursor, last), last
    watcher = Watcher(access)
    source = TurnSource(context.hub, context.resources.store, context.history)
    return EventStream(turns(source, mailbox, agent.id, cursor, watcher, opening), context.hub, watcher)


async def _present(context: ApiContext, agent: Agent) -> TurnCursor:
    """Behind all that there is by now, up to the turn that is under way, or is the next."""
    store = context.resources.store
    next_ids = [agent.open_run_id] if agent.open_run_id else await store.agents.mailbox(agent.id, limit=1)
    if next_ids:
        run = await store.runs.find(next_ids[0])
    else:
        run = next(iter(await store.agent_messages.of_agent(agent.id, limit=1, newest_first=True)), None)
    if run is None or run.turn is None:
        return TurnCursor(agent.turns, 0)
    return TurnCursor(run.turn, await context.history.last_id(run.id))


async def _last_before(context: ApiContext, request: Request, agent: Agent, cursor: TurnCursor) -> TurnCursor:
    """The cursor, where somebody can have received such an event; else the last one that there is before it. Others
    were never given, or by a database that was put back from a copy."""
    messages = context.resources.store.agent_messages
    if cursor.turn > agent.turns:
        newest = await messages.of_agent(agent.id, limit=1, newest_first=True)
        last = await context.history.last_id(newest[0].id) if newest else 0
        return TurnCursor(newest[0].turn or 0, last) if newest else TurnCursor(agent.turns, 0)
    run = await messages.of_turn(agent.id, cursor.turn)
    if run is None:
        return cursor
    if cursor.event <= (last := await context.history.last_id(run.id)) or run.status in FINAL:
        return cursor
    give_back(request.scope)
    last = await context.history.caught_up(run.id, cursor.event)
    return TurnCursor(cursor.turn, min(cursor.event, last))
