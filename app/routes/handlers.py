"""GET /agent/handlers: the functions that can carry a run out, with the schemas of what they take and give."""

from typing import Annotated

from fastapi import Path

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.handlers import HandlerList, HandlerView
from backplane.domain.validation_messages import near
from backplane.errors import NotFound

router = Operations(tags=["tools"])


@router.get("/agent/handlers", responses=responses())
async def list_handlers(_: CurrentUser, context: ContextOf) -> HandlerList:
    """The handlers that live workers have."""
    known = await context.known_tools.known(at_most_seconds_old=0)
    return HandlerList(
        handlers=[HandlerView.of(versions[0]) for _, versions in sorted(known.handlers.items())],
        complete=known.is_whole,
    )


@router.get("/agent/handlers/{name}", responses=responses(404, 422))
async def show_handler(
    name: Annotated[str, Path(min_length=1, max_length=64, description="Of a handler.")],
    _: CurrentUser,
    context: ContextOf,
) -> HandlerView:
    """One handler. Where workers have it in several versions, as the one that came last has it."""
    known = await context.known_tools.known(at_most_seconds_old=0)
    if name not in known.handlers:
        raise NotFound(f"no live worker has a handler {name!r}{near(name, known.handlers)}")
    return HandlerView.of(known.handlers[name][0])
