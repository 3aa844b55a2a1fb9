"""Waiting for a condition: what tests do instead of sleeping.

It looks often at first and then after each tenth of what it has waited, so a test takes hardly longer than what it
waits for: to look costs a query or a request, and others work meanwhile. The limit is only for what never comes.
"""

# ruff: noqa: ASYNC109 - the limit is a parameter because it is part of what a failure says.

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.05


@overload
async def wait_until(condition: Callable[[], Awaitable[T]], timeout: float = ..., what: str = ...) -> T: ...
@overload
async def wait_until(condition: Callable[[], T], timeout: float = ..., what: str = ...) -> T: ...
async def wait_until(
    condition: Callable[[], object],
    timeout: float = 10.0,
    what: str = "",
) -> object:
    """The first true answer of `condition` (a plain or an async function). Fails the test after `timeout` seconds,
    naming `what` was waited for, else the condition itself. Whatever the condition raises ends the wait."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        waited = loop.time() - began
        if waited > timeout:
            raise AssertionError(f"not within {timeout} s: {what or _source(condition)} (last answer: {answer!r})")
        await asyncio.sleep(min(SHORTEST_PAUSE_SECONDS + waited / 10, LONGEST_PAUSE_SECONDS))


def _source(condition: Callable[..., object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)
