"""Between the MCP library's HTTP client and the platform's: every request of the library goes out through the
platform's egress. On the way, the size of what a server sends is bounded, and what it sends is looked at: the library
waits for the rest of its time for an answer that will never come, and its words for what it cannot read are not for
people.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import httpx2
from mcp.types import PARSE_ERROR

from backplane.domain.retry import retry_after
from worker.mcp.connection import BEGINNING_BYTES, NOT_TAKEN, beginning_of
from worker.tools.base import Effect
from worker.tools.request_progress import RequestProgress

BEGINNING_SECONDS = 2.0
"""For the beginning of a body that is only shown."""
_EVENTS, _JSON = "text/event-stream", "application/json"
_NO_EVENT = (b"<", b"{", b"[")
"""With which no line of an event begins: a page, or JSON under the wrong name."""
NO_ANSWER = "it sent what is no answer to the request"


class Calls:
    """How far the call of a tool came. The client's error for a failure does not show it."""

    def __init__(self) -> None:
        self._progress: RequestProgress | None = None
        self._is_refused = False
        self._status = 0
        self.retry_after: float | None = None

    def begins(self) -> RequestProgress:
        self._progress = RequestProgress()
        return self._progress

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self.retry_after = retry_after(headers, datetime.now(UTC)) if self.may_be_taken_later else None

    def refused(self, code: int) -> None:
        """An error of JSON-RPC. The client itself makes others of these codes than those that are named here."""
        self._is_refused = self._status == 200 and code in NOT_TAKEN

    @property
    def was_not_taken(self) -> bool:
        """There was a call, and the tool was not called by it."""
        return self._progress is not None and (self._is_refused or self._progress.effect is Effect.NONE)

    @property
    def may_be_taken_later(self) -> bool:
        """It did not arrive, or came too often."""
        return self._status in (0, 425, 429)


class Bridge(httpx2.AsyncBaseTransport):
    """A transport of the one library as a transport of the other. `max_bytes`: of all that the server sends."""

    def __init__(self, inner: httpx.AsyncBaseTransport, max_bytes: int, calls: Calls) -> None:
        self._inner = inner
        self._left = max_bytes
        self._calls = calls
        self._sent = b""

    @property
    def sent(self) -> str:
        """The beginning of the last answer to a request; empty where nothing came."""
        # Redaction knows by the mark that a secret may have been cut.
        return beginning_of(self._sent + ("…".encode() if len(self._sent) >= BEGINNING_BYTES else b""))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        timeout = request.extensions.get("timeout")
        extensions: dict[str, Any] = {"timeout": timeout} if timeout else {}
        method, id = _request_in(body)
        progress = self._calls.begins() if method == "tools/call" else None
        if progress is not None:
            extensions["trace"] = progress.trace
        sent = httpx.Request(
            request.method, str(request.url), headers=request.headers.raw, content=body, extensions=extensions
        )
        if id is not None:
            self._sent = b""
        answer = await self._inner.handle_async_request(sent)
        if progress is not None:
            progress.answered(answer.status_code)
            self._calls.answered(answer.status_code, answer.headers)
        stream = _Body(answer, self._count, self._look if id is not None else _pass_over)
        response = httpx2.Response(answer.status_code, headers=answer.headers.raw, stream=stream)
        return response if id is None else await self._looked_at(response, id)

    async def _looked_at(self, response: httpx2.Response, id: int | str) -> httpx2.Response:
        kind = response.headers.get("content-type", "").lower()
        if kind.startswith(_JSON):
            content = await response.aread()
            if response.status_code < 400 and (error := _instead_of(content, id)) is not None:
                return httpx2.Response(200, json={"jsonrpc": "2.0", "id": id, "error": error})
        elif response.status_code >= 400 or not kind.startswith(_EVENTS):
            # The library does not read it. Its beginning is shown.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGINNING_SECONDS):
                    async for _ in response.aiter_raw():
                        if len(self._sent) >= BEGINNING_BYTES:
                            break
            await response.aclose()
            return httpx2.Response(response.status_code, headers=_without_length(response.headers), content=b"")
        return response

    def _look(self, chunk: bytes, kind: str) -> None:
        """Raises ReadError where a stream of events has none."""
        if len(self._sent) < BEGINNING_BYTES:
            self._sent += chunk[: BEGINNING_BYTES - len(self._sent)]
            if kind.startswith(_EVENTS) and self._sent.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in _NO_EVENT:
                raise httpx2.ReadError("no stream of events")

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise httpx2.ReadError("the server sends more than OUTSIDE_MAX_BYTES")

    async def aclose(self) -> None:
        await self._inner.aclose()


def _request_in(body: bytes) -> tuple[str | None, int | str | None]:
    """Method and id of the request of JSON-RPC that the library sends; no id: it wants no answer."""
    try:
        message = json.loads(body) if body else {}
        return message.get("method"), message.get("id")
    except (ValueError, AttributeError):
        return None, None


def _instead_of(content: bytes, id: int | str) -> dict[str, Any] | None:
    """The error of JSON-RPC that the library is given in place of a body that does not answer its request: of a message
    of another kind or with another id it takes no notice, and waits. None: the body may be an answer."""
    try:
        message = json.loads(content)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and "method" not in message:
        error = message.get("error")
        if message.get("id") is None and isinstance(error, dict):
            # As a server answers that could not read our request.
            return {"code": PARSE_ERROR, "message": str(error.get("message"))}
        if str(message.get("id")) == str(id):
            return None
    return {"code": PARSE_ERROR, "message": NO_ANSWER}


def _without_length(headers: httpx2.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("content-length", "content-encoding")}


def _pass_over(chunk: bytes, kind: str) -> None:
    pass


class _Body(httpx2.AsyncByteStream):
    """`look` is given each chunk and the kind of content."""

    def __init__(
        self, answer: httpx.Response, count: Callable[[int], None], look: Callable[[bytes, str], None]
    ) -> None:
        self._answer = answer
        self._count = count
        self._look = look
        self._kind = answer.headers.get("content-type", "").lower()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._answer.stream:  # type: ignore[union-attr]
            self._count(len(chunk))
            self._look(chunk, self._kind)
            yield chunk

    async def aclose(self) -> None:
        await self._answer.aclose()
