"""/api/v1/schedules: messages to agents by a cron expression, every so many seconds, or once. A controller sends
them."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Header, Response

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.agents import MessageView, NewMessage
from app.schemas.schedules import ScheduleList, ScheduleName, ScheduleSetting, ScheduleView
from backplane.domain.schedules import MAX_SCHEDULES
from backplane.errors import AgentTerminated

router = Operations(route_class=JsonRoute, tags=["schedules"])


@router.put(
    "/api/v1/schedules/{name}",
    responses={201: {"description": "It is new.", "model": ScheduleView}, **responses(404, 409, 413, 422)},
)
async def put_schedule(
    name: ScheduleName, new: ScheduleSetting, user: CurrentUser, context: ContextOf, response: Response
) -> ScheduleView:
    """Make a schedule, or put another one in the place of the one of this name. Its times are counted from now; a
    paused one stays paused."""
    context.agent_actions.check_message(new.text, new.data)
    wanted = new.checked(datetime.now(UTC))
    agent = await context.resources.store.agents.get(user.id, new.agent_id)
    if agent.terminated_at is not None:
        raise AgentTerminated(f"agent {agent.id} was terminated, and takes no messages")
    made, is_new = await context.resources.store.schedules.put(user.id, name, wanted, most=MAX_SCHEDULES)
    response.status_code = 201 if is_new else 200
    return ScheduleView.of(made)


@router.get("/api/v1/schedules", responses=responses())
async def list_schedules(user: CurrentUser, context: ContextOf) -> ScheduleList:
    """Your schedules by name."""
    found = await context.resources.store.schedules.list_of(user.id)
    return ScheduleList(schedules=[ScheduleView.of(schedule) for schedule in found])


@router.get("/api/v1/schedules/{name}", responses=responses(404, 422))
async def show_schedule(name: ScheduleName, user: CurrentUser, context: ContextOf) -> ScheduleView:
    """A schedule: when it fires next, and what became of the last time."""
    return ScheduleView.of(await context.resources.store.schedules.get(user.id, name))


@router.delete("/api/v1/schedules/{name}", status_code=204, responses=responses(404, 422))
async def delete_schedule(name: ScheduleName, user: CurrentUser, context: ContextOf) -> Response:
    """Delete a schedule. The messages that it has sent stay."""
    await context.resources.store.schedules.delete(user.id, name)
    return Response(status_code=204)


@router.post("/api/v1/schedules/{name}/pause", responses=responses(404, 409, 413, 422))
async def pause_schedule(name: ScheduleName, user: CurrentUser, context: ContextOf) -> ScheduleView:
    """Let it fire no more until it is resumed."""
    return ScheduleView.of(await context.resources.store.schedules.pause(user.id, name))


@router.post("/api/v1/schedules/{name}/resume", responses=responses(404, 409, 413, 422))
async def resume_schedule(name: ScheduleName, user: CurrentUser, context: ContextOf) -> ScheduleView:
    """Let it fire again, from the first time that comes. Times that passed meanwhile are not made up for."""
    return ScheduleView.of(await context.resources.store.schedules.resume(user.id, name))


@router.post("/api/v1/schedules/{name}/fire", status_code=202, responses=responses(404, 409, 413, 422))
async def fire_schedule(
    name: ScheduleName,
    user: CurrentUser,
    context: ContextOf,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="The same key answers the same message.")
    ] = None,
) -> MessageView:
    """Send its message now, beside its times, whether or not it is paused."""
    schedule = await context.resources.store.schedules.get(user.id, name)
    new = NewMessage(text=schedule.given.text, data=schedule.given.data)
    run = await context.agent_actions.send(user, schedule.given.agent_id, new, idempotency_key)
    return MessageView.of(run)
