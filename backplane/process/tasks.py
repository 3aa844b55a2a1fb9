"""Work that is ended for certain, or not interrupted before its end.

In Python 3.11 `asyncio.wait_for` loses a cancellation that arrives at the moment when what it waits for is done, and
redis-py sends every command through it. A loop that is cancelled just then goes on for ever, and so does whoever waits
for its end (a TaskGroup too, which cancels only once). So tasks are cancelled again until they end.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

from backplane.errors import PlatformError

P = ParamSpec("P")
T = TypeVar("T")


ASK_AGAIN_SECONDS = 0.2


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel these and wait until all have ended, in whatever way. Their errors are the caller's to read."""
    while pending := {task for task in tasks if not task.done()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=ASK_AGAIN_SECONDS)


async def abandon(task: "asyncio.Task[Any]") -> None:
    """End a task whose result nobody wants any more. It may fail just then: an error that the platform raised is
    dropped; a fault is raised."""
    await end(task)
    if not task.cancelled():
        with suppress(PlatformError):
            task.result()


async def run_together(**loops: Coroutine[Any, Any, None]) -> None:
    """Run these, which have no end of their own, as tasks of these names. The first error ends all and is raised."""
    tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        ending = asyncio.create_task(end(*tasks), name="end loops")
        while not ending.done():
            # This task may be cancelled again too; it ends only when all loops have ended.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(ending)


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, parallel: int) -> None:
    """Do `work` for each item, for `parallel` items at once. The first error ends what is under way and is raised."""
    waiting = iter(list(items))

    async def work_on() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(work_on())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like asyncio.to_thread, but a cancelled call still waits for the thread: the thread changes nothing after the
    call has ended."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,))
        if not work.cancelled():
            work.exception()
        raise


async def in_own_thread(function: Callable[[], T]) -> T:
    """Call a function that nobody here has written in a thread of its own. A call that is cancelled does not wait for
    it, and neither does the end of the process: it may never end, and would keep a thread from all who share a pool."""
    loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(value)

    def call() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = context.run(function)
        except StopIteration as stop:  # no future can hold it
            error = RuntimeError(f"the function raised StopIteration({stop.value!r})")
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=call, name=getattr(function, "__name__", "function"), daemon=True).start()
    return cast(T, await found)


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Finish `work` even when this task is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                break
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        with contextlib.suppress(Exception):
            task.result()
        raise cancelled
    return task.result()
