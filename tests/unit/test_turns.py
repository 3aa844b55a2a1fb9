"""Calls of one user wait for their turn; those of others do not wait for them."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from app.auth import SCOPE_USER
from app.edge.turns import AT_ONCE, Turns, give_back
from app.errors import install
from backplane.domain.users import Tier, User
from backplane.errors import PlatformError, QueueFull, TooManyStreams, TooManyTransfers
from tests.waiting import wait_until


class Slow:
    """An application whose calls last until `go`, and that first sends what `begins` says."""

    def __init__(self, begins: bool = False) -> None:
        self.go = asyncio.Event()
        self.under_way: list[str] = []
        self.begun = 0
        self._begins = begins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user_id = scope[SCOPE_USER].id
        self.under_way.append(user_id)
        self.begun += 1
        if self._begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.go.wait()
        self.under_way.remove(user_id)


async def call(
    app: Turns,
    user_id: str,
    path: str = "/agent/runs",
    method: str = "GET",
    authorization: bytes = b"Bearer T",
    gone: asyncio.Event | None = None,
) -> None:
    """`gone`: set when the client hangs up."""
    sent: list[Message] = [{"type": "http.request", "body": user_id.encode()}]

    async def receive() -> Message:
        if sent:
            return sent.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        return None

    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"authorization", authorization)],
        SCOPE_USER: User(user_id, user_id, Tier.FREE),
    }
    await app(scope, receive, send)


async def ended(slow: Slow, calls: list["asyncio.Task[None]"]) -> None:
    slow.go.set()
    await asyncio.gather(*calls)


async def test_so_many_calls_of_a_user_are_under_way_and_those_of_another_do_not_wait() -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(3 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    calls.append(asyncio.create_task(call(app, "b")))
    await wait_until(lambda: "b" in slow.under_way)
    assert slow.under_way.count("a") == AT_ONCE
    await ended(slow, calls)
    assert slow.under_way == []


async def test_a_call_whose_client_goes_while_it_waits_is_not_worked_on_and_keeps_no_other_back() -> None:
    slow, gone = Slow(), asyncio.Event()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    abandoned = [asyncio.create_task(call(app, "a", "/agent/abandoned", gone=gone)) for _ in range(100)]
    calls += [asyncio.create_task(call(app, "a")) for _ in range(AT_ONCE)]
    gone.set()
    await asyncio.gather(*abandoned)
    assert len(slow.under_way) == AT_ONCE
    await ended(slow, calls)
    assert slow.begun == 2 * AT_ONCE, "what was sent before them and after them was worked on, and nothing else"


async def test_a_call_that_is_cut_off_while_it_waits_takes_no_turn_with_it() -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(3 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    for waiting in calls[AT_ONCE : 2 * AT_ONCE]:
        waiting.cancel()
    await asyncio.wait(calls[AT_ONCE : 2 * AT_ONCE])
    del calls[AT_ONCE : 2 * AT_ONCE]
    await ended(slow, calls)
    slow.go.clear()
    calls = [asyncio.create_task(call(app, "a")) for _ in range(2 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    await ended(slow, calls)


async def test_a_body_that_came_before_the_turn_is_read_after_it() -> None:
    bodies: list[bytes] = []
    go = asyncio.Event()

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        bodies.append((await receive())["body"])

    app = Turns(reads)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(3 * AT_ONCE)]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*calls)
    assert bodies == [b"a"] * 3 * AT_ONCE


async def test_a_header_in_another_spelling_gets_no_turns_of_its_own() -> None:
    slow = Slow()
    app = Turns(slow)
    spellings = (b"Bearer T", b"Bearer  T", b"bEARER T")
    calls = [asyncio.create_task(call(app, "a", authorization=each)) for each in spellings * AT_ONCE]
    calls.append(asyncio.create_task(call(app, "b")))
    await wait_until(lambda: "b" in slow.under_way)
    assert slow.under_way.count("a") == AT_ONCE
    await ended(slow, calls)


async def test_calls_of_mcp_and_others_share_the_turns_of_their_user() -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a", "/mcp", "POST")) for _ in range(AT_ONCE)]
    calls += [asyncio.create_task(call(app, "a")) for _ in range(AT_ONCE)]
    calls.append(asyncio.create_task(call(app, "b")))
    await wait_until(lambda: "b" in slow.under_way)
    assert slow.under_way.count("a") == AT_ONCE
    await ended(slow, calls)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/api/v1/agents", "GET"),
        ("/api/v1/events", "POST"),
        ("/api/v1/hooks/mine", "PUT"),
        ("/api/v1/hooks", "GET"),
        ("/api/nas/services", "GET"),
        ("/agent/execute", "POST"),
    ],
)
async def test_each_call_that_needs_a_token_takes_a_turn(path: str, method: str) -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a", path, method)) for _ in range(2 * AT_ONCE)]
    calls.append(asyncio.create_task(call(app, "b")))
    await wait_until(lambda: "b" in slow.under_way)
    assert slow.under_way.count("a") == AT_ONCE
    await ended(slow, calls)


@pytest.mark.parametrize(
    ("path", "method"), [("/api/v1/hooks/address", "POST"), ("/health/live", "GET"), ("/metrics", "GET")]
)
async def test_a_call_of_a_stranger_does_not_wait_for_others(path: str, method: str) -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "", path, method)) for _ in range(2 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == 2 * AT_ONCE)
    await ended(slow, calls)


async def test_a_call_that_gives_its_turn_back_lets_the_next_begin_and_gives_it_back_once() -> None:
    slow = Slow()

    async def gives_back(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/mcp":
            give_back(scope)
            give_back(scope)
        await slow(scope, receive, send)

    app = Turns(gives_back)
    waiting = [asyncio.create_task(call(app, "a", "/mcp", "POST")) for _ in range(3 * AT_ONCE)]
    await wait_until(lambda: slow.under_way.count("a") == 3 * AT_ONCE)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(2 * AT_ONCE)]
    calls.append(asyncio.create_task(call(app, "b")))
    await wait_until(lambda: "b" in slow.under_way)
    assert slow.under_way.count("a") == 4 * AT_ONCE
    await ended(slow, waiting + calls)
    assert app._queues == {}


async def test_an_answer_that_has_begun_gives_its_turn_back() -> None:
    slow = Slow(begins=True)
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(3 * AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == 3 * AT_ONCE)
    await ended(slow, calls)


async def test_files_on_their_way_take_no_turn() -> None:
    slow = Slow()
    app = Turns(slow)
    path = "/agent/runs/1/files/a"
    calls = [asyncio.create_task(call(app, "a", path, "PUT")) for _ in range(2 * AT_ONCE)]
    calls.append(asyncio.create_task(call(app, "a")))
    await wait_until(lambda: len(slow.under_way) == 2 * AT_ONCE + 1)
    await ended(slow, calls)


async def test_a_call_that_is_given_up_while_it_waits_leaves_no_trace() -> None:
    slow = Slow()
    app = Turns(slow)
    calls = [asyncio.create_task(call(app, "a")) for _ in range(AT_ONCE)]
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    waiting = asyncio.create_task(call(app, "a"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await ended(slow, calls)
    assert app._queues == {}


async def test_a_body_that_comes_slowly_holds_up_nobody() -> None:
    slow, arrives = Slow(), asyncio.Event()
    app = Turns(slow)
    posts = [asyncio.create_task(post(app, arrives)) for _ in range(2 * AT_ONCE)]
    await asyncio.sleep(0)
    calls = [asyncio.create_task(call(app, "a"))]
    await wait_until(lambda: slow.under_way == ["a"])
    arrives.set()
    await wait_until(lambda: len(slow.under_way) == AT_ONCE)
    await ended(slow, [*calls, *posts])


async def post(app: Turns, arrives: asyncio.Event) -> None:
    """A call of `a` whose body is complete when `arrives` is set."""
    parts = [b"first", b"last"]

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()
        if len(parts) == 1:
            await arrives.wait()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(_: Message) -> None:
        return None

    headers = [(b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": "/agent/execute", "headers": headers}
    await app({**scope, SCOPE_USER: User("a", "a", Tier.FREE)}, receive, send)


@pytest.mark.parametrize("announced", [(b"content-length", b"6"), (b"transfer-encoding", b"chunked")])
async def test_a_body_is_given_as_it_came_and_then_the_end_of_the_connection(announced: tuple[bytes, bytes]) -> None:
    came: list[Message] = [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
        {"type": "http.disconnect"},
    ]
    left, seen = list(came), list[Message]()

    async def receive() -> Message:
        return left.pop(0)

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive() for _ in came])

    async def send(_: Message) -> None:
        return None

    scope = {"type": "http", "method": "POST", "path": "/agent/execute", "headers": [announced]}
    await Turns(reads)({**scope, SCOPE_USER: User("a", "a", Tier.FREE)}, receive, send)
    assert seen == came


class _Pausing:
    """In the place of the authenticator: pauses until `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.paused = 0

    async def pause(self, _: Scope) -> None:
        self.paused += 1
        await self.go.wait()


@pytest.mark.parametrize(
    "refusal",
    [TooManyStreams("many", retry_after=1), TooManyTransfers("many", retry_after=1), QueueFull("full", "queue", 1)],
)
async def test_a_call_whose_refusal_waits_holds_up_no_other_of_its_user(refusal: PlatformError) -> None:
    api, pausing = FastAPI(), _Pausing()
    api.state.authenticator = pausing
    install(api)

    @api.get("/agent/refused")
    async def refused() -> None:
        raise refusal

    app = Turns(api)
    calls = [asyncio.create_task(call(app, "a", "/agent/refused")) for _ in range(2 * AT_ONCE)]
    await wait_until(lambda: pausing.paused == 2 * AT_ONCE)
    pausing.go.set()
    await asyncio.gather(*calls)
