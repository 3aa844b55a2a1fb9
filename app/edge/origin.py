"""What every answer says to a browser: run nothing of it, show it in no frame, guess no type, send no address on.

The API's answers are data, so their policy allows nothing at all; `sandbox` holds for a file, too, that somebody
uploaded and another opens. The pages at /docs and /console/ are the exceptions, and name their own policies. TLS is the
proxy's, and so is Strict-Transport-Security.

HEAD is answered where GET is, with the same status and headers.
"""

from collections.abc import Awaitable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Origin:
    """ASGI middleware. A header that an answer has already stays as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        # A plain function, since it is called for every chunk of a stream.
        def marked(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                named = {name for name, _ in headers}
                headers.extend(header for header in _RAW if header[0] not in named)
            return send(message)

        if scope["method"] == "HEAD":
            await _answer_head(self._app, scope, receive, marked)
        else:
            await self._app(scope, receive, marked)


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """As GET, up to the body, of which nothing is read."""

    async def without_body(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise _Answered

    with suppress(_Answered):
        await app({**scope, "method": "GET"}, receive, without_body)


class _Answered(BaseException):
    """Not an Exception, so that nothing in between takes it for a fault."""
