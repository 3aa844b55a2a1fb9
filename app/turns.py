"""So many calls of one token are worked on at once; its further ones wait for their turn.

All calls of a process share one event loop and a few database connections, first come, first served. Without this a
hundred calls that one client sends at the same moment stand before everybody else's next one. What takes long and costs
little does not keep its turn: a stream gives it back when it begins, and files have limits of their own
(`app.transfers`).
"""

import asyncio
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.body_limit import FILES

AT_ONCE = 8


@dataclass(slots=True)
class _Queue:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    calls: int = 0


class Turns:
    """ASGI middleware. Calls without a token all wait in one queue of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._queues: dict[bytes, _Queue] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/agent/") or _is_file(scope):
            await self._app(scope, receive, send)
            return
        token = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        queue = self._queues.setdefault(token, _Queue())
        queue.calls += 1
        is_held = False

        async def answer(message: Message) -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                queue.room.release()
            await send(message)

        try:
            await queue.room.acquire()
            is_held = True
            await self._app(scope, receive, answer)
        finally:
            if is_held:
                queue.room.release()
            queue.calls -= 1
            if not queue.calls:
                del self._queues[token]


def _is_file(scope: Scope) -> bool:
    return scope["path"].startswith(FILES) and "/files/" in scope["path"]
