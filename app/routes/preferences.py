"""/agent/preferences: what a user prefers in the console (colours, time zone, saved views), as one JSON object."""

import json
import re
from typing import Annotated, Any

from fastapi import Body, Header, Response

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.fields import JsonObject
from backplane.errors import InvalidInput, TooLarge

router = Operations(route_class=JsonRoute, tags=["sessions"])

MAX_BYTES = 16 * 1024


@router.get("/agent/preferences", responses=responses())
async def show_preferences(user: CurrentUser, context: ContextOf, response: Response) -> dict[str, Any]:
    """Your preferences; an empty object before you put any. `ETag` is their version."""
    value, version = await context.resources.store.preferences.of(user.id)
    response.headers["ETag"] = f'"{version}"'
    response.headers["Cache-Control"] = "no-store"
    return value


@router.put("/agent/preferences", responses=responses(409, 413, 422))
async def put_preferences(
    value: Annotated[JsonObject, Body(examples=[{"theme": "dark", "time_zone": "Europe/Berlin"}])],
    user: CurrentUser,
    context: ContextOf,
    response: Response,
    if_match: Annotated[
        str | None,
        Header(max_length=40, description="The `ETag` of what you changed: 409 where they were changed meanwhile."),
    ] = None,
) -> dict[str, Any]:
    """Replace your preferences.

    An object of at most 16 KiB, which the platform keeps and does not read."""
    if len(json.dumps(value, separators=(",", ":"))) > MAX_BYTES:
        raise TooLarge(f"the preferences are larger than {MAX_BYTES} bytes; leave out views that you do not use")
    version = await context.resources.store.preferences.put(user.id, value, version=_version(if_match))
    response.headers["ETag"] = f'"{version}"'
    return value


def _version(if_match: str | None) -> int | None:
    """None: any. Raises InvalidInput."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = re.fullmatch(r'(?:W/)?"([0-9]{1,9})"', if_match.strip())
    if found is None:
        raise InvalidInput('If-Match: send the ETag of GET /agent/preferences, as "3"', field="If-Match")
    return int(found[1])
