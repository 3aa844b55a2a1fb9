"""What holds the loop is reported with the place in the code; a loop that turns is not."""

import asyncio
import threading
from typing import Any

import pytest
import structlog

from backplane.process.loop_watchdog import blocks_reported, watched
from tests.waiting import wait_until


class Lines:
    """What threads log that begin after this, in memory. A thread of a test before may still be about to log: nobody
    waits for the end of a watchdog."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        self._others = set(threading.enumerate())

    def __call__(self, logger: Any, method: str, line: Any) -> Any:
        if threading.current_thread() not in self._others:
            self.lines.append(dict(line))
            self.arrived.set()
        raise structlog.DropEvent


@pytest.fixture
def lines() -> Any:
    found = Lines()
    before = structlog.get_config()
    structlog.configure(processors=[found])
    yield found
    structlog.configure(**before)


def hold_until(reported: threading.Event) -> None:
    assert reported.wait(30)


async def test_a_blocked_loop_is_logged_with_its_stack_while_it_is_blocked(lines: Lines) -> None:
    with watched(blocked_seconds=0.05, period_seconds=0.01):
        hold_until(lines.arrived)
    assert lines.lines[0]["event"] == "the event loop is blocked"
    assert "hold_until" in lines.lines[0]["stack"]


async def test_the_end_of_a_hold_is_reported_with_its_length(lines: Lines) -> None:
    with watched(blocked_seconds=0.05, period_seconds=0.01):
        hold_until(lines.arrived)
        lines.arrived.clear()
        await wait_until(lines.arrived.is_set)
    assert [line["event"] for line in lines.lines[:2]] == ["the event loop is blocked", "the event loop goes on"]
    assert lines.lines[1]["blocked_seconds"] >= 0.05


async def test_a_loop_that_turns_is_not_reported(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, looks = asyncio.get_running_loop(), 0
    schedule = loop.call_soon_threadsafe
    enough = asyncio.Event()

    def counted(callback: Any, *args: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 20:
            schedule(enough.set)
        return schedule(callback, *args, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    with watched(blocked_seconds=5, period_seconds=0.001):
        async with asyncio.timeout(30):
            await enough.wait()
    assert lines.lines == []


async def test_the_thread_ends_with_the_block() -> None:
    before = set(threading.enumerate())
    with watched(period_seconds=0.01):
        [thread] = [one for one in threading.enumerate() if one.name == "loop watchdog" and one not in before]
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()


async def test_the_line_that_blocks_is_reported_to_its_own_task_as_soon_as_the_loop_goes_on(lines: Lines) -> None:
    reported: list[tuple[str, float]] = []

    async def blocks() -> None:
        with blocks_reported(lambda place, seconds: reported.append((place, seconds)), __file__):
            hold_until(lines.arrived)  # this one
        await asyncio.sleep(0)
        assert len(reported) == 1

    with watched(blocked_seconds=0.05, period_seconds=0.01):
        await asyncio.create_task(blocks())
    [(place, seconds)] = reported
    assert "test_loop_watchdog.py, line" in place
    assert "in hold_until: assert reported.wait(30)" in place
    assert seconds >= 0.05


async def test_what_another_task_blocks_is_not_reported_to_this_one(lines: Lines) -> None:
    reported: list[str] = []

    async def innocent() -> None:
        with blocks_reported(lambda place, _: reported.append(place), __file__):
            await wait_until(lines.arrived.is_set)

    waiting = asyncio.create_task(innocent())
    await asyncio.sleep(0)
    with watched(blocked_seconds=0.05, period_seconds=0.01):
        hold_until(lines.arrived)
        await waiting
    assert reported == []
