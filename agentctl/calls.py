"""How a command calls the API.

It gets a client of the address and with the token that the environment names, and the whole id of a run of which a
person gave the beginning.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, TypeVar

import typer

from agentctl.api.address import find_token, find_url
from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client, connect
from agentctl.api.ids import whole_run_id
from agentctl.api.pages import newest
from agentctl.completion import run_ids
from agentctl.terminal.output import (
    Output,
)

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of the run, or how it begins.", autocompletion=run_ids)
]


T = TypeVar("T")


def call(output: Output, work: Callable[[Client], Awaitable[T]]) -> T:
    """Do `work` with a client of the API that the environment names."""
    url, token = find_url(), find_token()

    async def connected() -> T:
        async with connect(url, token, output.note) as client:
            return await work(client)

    return asyncio.run(connected())


def call_on(output: Output, run_id: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
    """Do `work` with a client and the whole id of the run that `run_id` is, or begins."""

    async def resolved(client: Client) -> T:
        return await work(client, await whole_run_id(client, run_id))

    return call(output, resolved)


def listed(
    output: Output, fetch: Callable[[Client, str | None, int], Awaitable[JsonObject]], items: str, limit: int
) -> list[JsonObject]:
    """Up to `limit` of what the API's pages have under `items`. `fetch`: the page behind a cursor (None: the first
    one), with at most so many."""
    return call(output, lambda client: newest(partial(fetch, client), items, limit))
