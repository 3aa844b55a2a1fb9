"""Routes whose JSON bodies have each name once (`backplane.unique_json`): 422 `duplicate_name` names the second one.

The web framework parses a body before any route or model sees it, and keeps the last of two equal names, so it is done
in its stead. `tests/architecture` holds every route with a body to this one.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from backplane.unique_json import DuplicateName, loads


class NameStandsTwice(HTTPException):
    """`place`: the dotted path of the name."""

    def __init__(self, error: DuplicateName) -> None:
        super().__init__(422, str(error))
        self.place = error.place


class _Request(Request):
    async def json(self) -> Any:
        try:
            return loads(await self.body())
        except DuplicateName as error:
            # The framework lets this one kind of error pass as it is.
            raise NameStandsTwice(error) from None


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_unique_names(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return with_unique_names
