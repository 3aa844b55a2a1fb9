"""Calls of one token wait for their turn; those of others do not wait for them."""

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from app.turns import AT_ONCE, Turns
from tests.waiting import wait_until


class Slow:
    """An application whose calls last until `go`, and that first sends what `begins` says."""

    def __init__(self, begins: bool = False) -> None:
        self.go = asyncio.Event()
        self.under_way: list[bytes] = []
        self._begins = begins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = dict(scope["headers"]).get(b"authorization", b"")
        self.under_way.append(token)
        if self._begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.go.wait()
        self.under_way.remove(token)


async def call(app: Turns, token: bytes, path: str = "/agent/runs", method: str = "GET") -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        return None

    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": [(b"authorization", token)]}
    await app(scope, receive, send)


async def ended(slow: Slow, calls: list["asyncio.Task[None]"]) -> None:
    slow.go.set()
    await asyncio.gather(*calls)


async def test_so_many_calls_of_a_token_are_under_way_and_those_of_another_do_not_wait() -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, b"a")) for _ in range(3 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    calls.append(asyncio.create_task(call(app, b"b")))
    await wait_until(lambda: b"b" in slow.under_way)
    assert slow.under_way.count(b"a") == AT_ONCE
    await ended(slow, calls)
    assert slow.under_way == []


async def test_an_answer_that_has_begun_gives_its_turn_back() -> None:
    slow = Slow(begins=True)
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, b"a")) for _ in range(3 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == 3 * AT_ONCE)
    await ended(slow, calls)


async def test_files_on_their_way_take_no_turn() -> None:
    slow = Slow()
    app = Turns(slow)
    path = "/agent/runs/1/files/a"
    calls = [asyncio.create_task(call(app, b"a", path, "PUT")) for _ in range(2 * AT_ONCE)]
    calls.append(asyncio.create_task(call(app, b"a")))
    await wait_until(lambda: len(slow.under_way) == 2 * AT_ONCE + 1)
    await ended(slow, calls)


async def test_a_call_that_is_given_up_while_it_waits_leaves_no_trace() -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, b"a")) for _ in range(AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    waiting = asyncio.create_task(call(app, b"a"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await ended(slow, calls)
    assert app._queues == {}
