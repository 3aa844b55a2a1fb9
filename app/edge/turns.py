"""So many calls of one user are worked on at once; the user's further ones wait for their turn.

All calls of a process share one event loop and a few database connections, first come, first served. Without this a
hundred calls that one client sends at the same moment stand before everybody else's next one. What takes long and costs
little does not keep its turn: a body is read before the call takes one, a stream gives it back when it begins, a call
that only waits gives it back when it begins to wait (`give_back`), and files have limits of their own
(`app.limits.transfers`). What is posted to a hook takes none: nobody knows whose it is before its address is looked up,
so strangers would hold up one another. The rates of strangers and of hooks bound it.

A call whose client has gone gives up its place in the line. Otherwise clients that ask again after a while would add
calls faster than they are answered, and all that is worked on would be for nobody.
"""

import asyncio
from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import HOOKS, SCOPE_USER, WITH_TOKEN
from backplane.domain.users import User
from backplane.process.tasks import end, uninterrupted

AT_ONCE = 4
"""Fewer than the database connections that a process keeps (DATABASE_POOL_SIZE), so that others find one free."""
FILES = "/agent/runs/"
"""How the path of a file begins."""
SCOPE_TURN = "agent.turn"


@dataclass(slots=True)
class _UserTurns:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    calls: int = 0


@dataclass(slots=True)
class _Turn:
    queue: _UserTurns
    is_taken: bool = False

    def give_back(self) -> None:
        if self.is_taken:
            self.is_taken = False
            self.queue.room.release()


class Turns:
    """ASGI middleware, inside of the one that finds out whose a request is (`app.edge.gate`). Calls of nobody all wait
    in one queue of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._queues: dict[str, _UserTurns] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _takes_turn(scope):
            await self._app(scope, receive, send)
            return
        user: User | None = scope.get(SCOPE_USER)
        user_id = user.id if user is not None else ""
        queue = self._queues.setdefault(user_id, _UserTurns())
        queue.calls += 1
        turn = scope[SCOPE_TURN] = _Turn(queue)

        async def answer(message: Message) -> None:
            turn.give_back()
            await send(message)

        try:
            if _has_body(scope):
                receive = await _once_arrived(receive)
            if queue.room.locked():
                line = _Line(receive)
                if not await line.wait_for(queue.room):
                    return
                receive = line.receive
            else:
                await queue.room.acquire()
            turn.is_taken = True
            await self._app(scope, receive, answer)
        finally:
            turn.give_back()
            queue.calls -= 1
            if not queue.calls:
                del self._queues[user_id]


class _Line:
    """A call that waits for its turn, and what its client has sent meanwhile: the end of an empty body at most, and
    that it has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages = deque[Message]()

    async def wait_for(self, room: asyncio.Semaphore) -> bool:
        """Returns whether the turn is taken; it is not when the client has gone before."""
        turn = asyncio.create_task(room.acquire(), name="wait for a turn")
        hang_up = asyncio.create_task(self._hang_up(), name="wait for a hang-up")
        is_kept = False
        try:
            await asyncio.wait({turn, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            is_kept = not hang_up.done()
        finally:
            try:
                await uninterrupted(end(hang_up, turn))
            except asyncio.CancelledError:
                is_kept = False
                raise
            finally:
                if not is_kept and not turn.cancelled():
                    room.release()
        return is_kept

    async def receive(self) -> Message:
        return self._messages.popleft() if self._messages else await self._receive()

    async def _hang_up(self) -> None:
        while not self._messages or self._messages[-1]["type"] != "http.disconnect":
            self._messages.append(await self._receive())


def give_back(scope: MutableMapping[str, Any]) -> None:
    """Let the next call of this user begin: this one only waits from now on."""
    turn: _Turn | None = scope.get(SCOPE_TURN)
    if turn is not None:
        turn.give_back()


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def _once_arrived(receive: Receive) -> Receive:
    """Wait for the whole body, whose size is limited (`app.edge.body_limit`). What comes back gives it once more."""
    messages = deque[Message]()
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())

    async def again() -> Message:
        return messages.popleft() if messages else await receive()

    return again


def _takes_turn(scope: Scope) -> bool:
    path: str = scope["path"]
    if path.startswith(HOOKS) and scope["method"] == "POST":
        return False
    return path == "/mcp" or (path.startswith(WITH_TOKEN) and not _is_file(scope))


def _is_file(scope: Scope) -> bool:
    return scope["path"].startswith(FILES) and "/files/" in scope["path"]
