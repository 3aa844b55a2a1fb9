"""Tasks end when they are cancelled, also those that have to be cancelled twice."""

import asyncio
from contextlib import suppress

import pytest

from backplane.errors import Unavailable
from backplane.process.tasks import abandon, end, run_together


async def deaf(times: int) -> None:
    """Loses so many cancellations."""
    for _ in range(times):
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    await asyncio.Event().wait()


async def failing() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("a fault")


async def failing_at_its_end(error: Exception) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise error


async def test_a_task_that_loses_a_cancellation_is_asked_again() -> None:
    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 2)]
    await asyncio.sleep(0)
    await end(*tasks)
    assert all(task.cancelled() for task in tasks)


async def test_ending_what_has_ended_is_no_error() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end(task)
    await end()


async def test_an_abandoned_task_may_fail_by_an_error_of_the_platform() -> None:
    task = asyncio.create_task(failing_at_its_end(Unavailable("no database", part="database")))
    await asyncio.sleep(0)
    await abandon(task)


async def test_a_fault_of_an_abandoned_task_is_raised() -> None:
    task = asyncio.create_task(failing_at_its_end(RuntimeError("a fault")))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="a fault"):
        await abandon(task)


async def test_abandoning_a_task_that_can_be_cancelled_is_no_error() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    await abandon(task)
    assert task.cancelled()


async def test_the_first_error_ends_all_loops_and_is_raised() -> None:
    with pytest.raises(RuntimeError, match="a fault"):
        await run_together(one=deaf(1), other=failing())


async def test_loops_end_with_whoever_runs_them() -> None:
    running = asyncio.create_task(run_together(one=deaf(1), other=deaf(0)))
    await asyncio.sleep(0)
    await end(running)
    assert running.cancelled()
