"""Routes whose JSON bodies have each name once (`backplane.input.unique_json`): 422 `duplicate_name` names the second
one.

The web framework parses a body before any route or model sees it, and keeps the last of two equal names, so it is done
in its stead. `tests/architecture` holds every route with a body to this one.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from backplane.domain.plans import MAX_NAMES
from backplane.input.unique_json import DuplicateName, loads

LARGE_BYTES = 64 * 1024
"""A body of more is read in a thread, since 4 MB with a million values take a second: others are served meanwhile."""


class BodyRefused(HTTPException):
    """422. The framework lets this one kind of error pass as it is. `place`: the dotted path of what is wrong."""

    def __init__(self, code: str, message: str, place: str) -> None:
        super().__init__(422, message)
        self.code = code
        self.place = place


async def _parsed(body: bytes) -> Any:
    try:
        return loads(body) if len(body) <= LARGE_BYTES else await asyncio.to_thread(loads, body)
    except DuplicateName as error:
        raise BodyRefused("duplicate_name", str(error), error.place) from None


async def json_of(body: bytes) -> Any:
    """The JSON value of a body that a route has read by itself. Raises BodyRefused."""
    try:
        return await _parsed(body)
    except json.JSONDecodeError as error:
        raise BodyRefused("malformed_json", f"the body is not JSON: {error.msg}", "body") from None
    except (ValueError, RecursionError):
        message = "the body is not JSON: it is no UTF-8, nested too deeply, or has a number of too many digits"
        raise BodyRefused("malformed_json", message, "body") from None


class _JsonRequest(Request):
    async def json(self) -> Any:
        value = await _parsed(await self.body())
        # No request has so many fields, and each unknown one would be described.
        if isinstance(value, dict) and len(value) > MAX_NAMES:
            message = f"the body: it has {len(value):,} names; at most {MAX_NAMES} are possible"
            raise BodyRefused("invalid_input", message, "body")
        return value


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_unique_names(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return with_unique_names
