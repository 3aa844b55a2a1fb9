"""Caps on request bodies, before anything is parsed: on their bytes, and on how many JSON values they hold.

To parse JSON holds the event loop, in a thread too, and its cost goes by the values: 4 MB of text take 5 ms, 4 MB of
`1,1,1,…` 600 ms. So values are counted as the chunks come, of which each is small. Files are streamed and have their
own limit, so they pass.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.turns import FILES
from app.errors import problem
from app.schemas.fields import MAX_VALUES

VALUES_MAX = 4 * MAX_VALUES
"""The most values in a whole body: more than the largest plan and the largest metadata hold. To parse them takes some
20 ms."""


class JsonValues:
    """Counts the values of a JSON text that comes in chunks; a list or an object is one, and so is each of its values.
    Of what is no JSON it counts no less than a parser would look at, which ends at the first fault."""

    def __init__(self) -> None:
        self.count = 1
        self._in_string = False
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        # Without what stands behind a backslash, every quote begins or ends a string.
        text = (self._rest + chunk).replace(b"\\\\", b"").replace(b'\\"', b"")
        self._rest = text[-1:] if text.endswith(b"\\") else b""
        parts = text.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self.count += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        self._in_string ^= len(parts) % 2 == 0


class BodyLimit:
    """ASGI middleware. `max_bytes` holds for every request but the PUT of a file."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        is_file = scope["method"] == "PUT" and scope["path"].startswith(FILES)
        if is_file or not has_body:
            await self._app(scope, receive, send)
            return
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        received, refused, values = 0, False, JsonValues()

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            body = message.get("body", b"")
            received += len(body)
            if received > self._max_bytes:
                raise _BodyTooLarge
            values.add(body)
            if values.count > VALUES_MAX:
                raise _TooManyValues
            return message

        async def guarded(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, guarded)
        except _BodyTooLarge:
            refused = True
            await self._refuse(scope, receive, send)
        except _TooManyValues:
            refused = True
            detail = f"the body holds more than {VALUES_MAX:,} JSON values; put large data into a file of the run"
            await problem(413, "too_large", detail)(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body is larger than {self._max_bytes} bytes (REQUEST_MAX_BYTES); put large content into files"
        await problem(413, "too_large", detail)(scope, receive, send)


class _BodyTooLarge(BaseException):
    """Not an Exception, so that no handler in between makes another answer of it."""


class _TooManyValues(BaseException):
    """The same."""
