"""Short blocking calls one after another in one thread."""

import asyncio
import threading

import pytest

from backplane.workspace.files import SerialThread


class Gate:
    """Holds the thread until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self.entered.set()
        assert self._opened.wait(30)

    def open(self) -> None:
        self._opened.set()

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


async def test_each_caller_gets_its_own_result_or_error() -> None:
    serial = SerialThread()
    outcomes = await asyncio.gather(*(serial.run(divmod, 7, by) for by in (2, 0, 3)), return_exceptions=True)
    assert outcomes[0] == (3, 1)
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert outcomes[2] == (2, 1)


async def test_no_two_calls_run_at_once_and_they_keep_their_order() -> None:
    serial = SerialThread()
    running: list[int] = []
    seen: list[tuple[int, list[int]]] = []

    def call(number: int) -> None:
        running.append(number)
        seen.append((number, list(running)))
        running.remove(number)

    await asyncio.gather(*(serial.run(call, number) for number in range(100)))
    assert seen == [(number, [number]) for number in range(100)]


async def test_a_call_cancelled_before_its_turn_is_left_out() -> None:
    serial, gate, made = SerialThread(), Gate(), list[int]()
    first = asyncio.create_task(serial.run(gate.pass_through))
    await gate.reached()
    left_out = asyncio.create_task(serial.run(made.append, 1))
    kept = asyncio.create_task(serial.run(made.append, 2))
    await asyncio.sleep(0)
    left_out.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left_out
    gate.open()
    await asyncio.gather(first, kept)
    assert made == [2]


async def test_a_call_cancelled_in_its_turn_is_waited_for() -> None:
    serial, gate, ended = SerialThread(), Gate(), threading.Event()

    def slow() -> None:
        gate.pass_through()
        ended.set()

    running = asyncio.create_task(serial.run(slow))
    await gate.reached()
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    assert await serial.run(str, 1) == "1"
