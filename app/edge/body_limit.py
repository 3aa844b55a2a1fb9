"""A cap on request bodies, before anything is parsed. Files are streamed and have their own limit, so they pass."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import problem

FILES = "/agent/runs/"


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
        received, refused = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _TooLarge
            return message

        async def guarded(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, guarded)
        except _TooLarge:
            refused = True
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body is larger than {self._max_bytes} bytes (REQUEST_MAX_BYTES); put large content into files"
        await problem(413, "too_large", detail)(scope, receive, send)


class _TooLarge(BaseException):
    """Not an Exception, so that no handler in between makes another answer of it."""
