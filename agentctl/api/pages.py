"""Lists that come in pages."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from agentctl.api.api_error import JsonObject
from agentctl.exit_codes import CommandError, ExitCode

Cursor = TypeVar("Cursor", str, int)


FetchPage = Callable[[str | None, int], Awaitable[JsonObject]]
"""Fetches the page behind a cursor (None: the first page), with at most so many items."""


PAGE = 100


async def newest(fetch: FetchPage, items: str, limit: int) -> list[JsonObject]:
    """Up to `limit` of what pages have under `items`."""
    found: list[JsonObject] = []
    cursor = None
    while len(found) < limit:
        page = await fetch(cursor, min(PAGE, limit - len(found)))
        found += page[items]
        cursor = following(cursor, page["next_cursor"])
        if cursor is None:
            break
    return found


def following(cursor: Cursor | None, found: Cursor | None) -> Cursor | None:
    """Where the next page is. Raises CommandError for a page that follows itself: it would be fetched for ever."""
    if found is not None and found == cursor:
        raise CommandError(ExitCode.UNREACHABLE, "The API answers with the same page again and again.")
    return found
