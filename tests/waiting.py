"""Waiting for a condition: what tests do instead of sleeping.

It looks often, so a test takes as long as what it waits for; the limit is only for what never comes.
"""

# ruff: noqa: ASYNC109 - the limit is a parameter because it is part of what a failure says.

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

PAUSE_SECONDS = 0.01


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
    deadline = loop.time() + timeout
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or _source(condition)} (last answer: {answer!r})")
        await asyncio.sleep(PAUSE_SECONDS)


def _source(condition: Callable[..., object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)
