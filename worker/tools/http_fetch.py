"""Requests to the outside: `http_fetch` reads, `http_request` changes something there.

The operator decides which hosts may be reached (OUTSIDE_HOSTS, `backplane.net.egress`), and each redirect is checked
anew. Headers may hold secrets; they go to hosts that the secret itself names, and are dropped on the way to another
origin. What comes back is hostile: it is read a piece at a time and never further than the limit, compressed or not,
and in so much time in all. It becomes text in the output, or a file of the workspace, which is there whole or not at
all.

What a failed `http_request` has done outside follows from how far it came (`worker.tools.request_progress`). With an
`idempotency_header` the server sees that each try is the same request.
"""

import asyncio
import hashlib
import re
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

import httpx
from pydantic import Field, model_validator

from backplane import VERSION
from backplane.domain.retry import retry_after
from backplane.domain.runs import RunError
from backplane.domain.secrets import SECRET_REFERENCE
from backplane.domain.sizes import readable_size, shortened
from backplane.errors import InvalidInput, PlatformError, Superseded, TooLarge
from backplane.net.egress import OutsidePolicy
from backplane.net.hosts import host_and_port
from backplane.workspace.quota import ensure_room, limited
from worker.sandbox.base import Call
from worker.tools.arguments import HeaderName, Headers, Url, WorkspacePath, is_header_value
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.charset import codec_of, decoded, is_marked
from worker.tools.page_text import MAX_PAGE_BYTES, text_of_page
from worker.tools.request_progress import KEEP_METHOD, RequestProgress

MIB = 1024**2
MAX_SHOWN_BYTES = MIB
MAX_BODY_CHARS = 4 * MIB
PIECE_BYTES = 64 * 1024
_XML = re.compile(r"(text|application)/([a-z0-9.-]+\+)?xml\b")
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_PERSONAL = frozenset(("authorization", "cookie"))
_MAY_PASS = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Statuses after which the same request may succeed later."""


class OutsideFailed(Exception):
    """What became of a request that has no usable answer."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class HttpFetchArguments(ToolArguments):
    url: Url = Field(description="http or https.")
    method: Literal["GET", "HEAD"] = "GET"
    headers: Headers = Field({}, description="${secrets.NAME} may stand in values.")
    max_bytes: int = Field(64 * 1024, ge=1, le=MAX_SHOWN_BYTES, description="Of the text, what is printed at most.")
    save_as: WorkspacePath | None = Field(None, description="Write the body to this file instead of printing it.")


class HttpRequestArguments(ToolArguments):
    url: Url = Field(description="http or https.")
    method: Literal["POST", "PUT", "PATCH", "DELETE"]
    headers: Headers = Field({}, description="${secrets.NAME} may stand in values.")
    body: str = Field("", max_length=MAX_BODY_CHARS, description="Sent as UTF-8; name its type in Content-Type.")
    max_bytes: int = Field(64 * 1024, ge=1, le=MAX_SHOWN_BYTES, description="Of the text, what is printed at most.")
    save_as: WorkspacePath | None = Field(None, description="Write the answer to this file instead of printing it.")
    idempotency_header: HeaderName | None = Field(
        None,
        description="A header by which this server knows a repeated request, such as Idempotency-Key: each try sends "
        "the same key in it, so the step may be repeated.",
    )

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.idempotency_header and self.idempotency_header.lower() in {name.lower() for name in self.headers}:
            raise ValueError(f"headers has {self.idempotency_header} too: leave it out there, or here")
        return self


@dataclass(frozen=True, slots=True)
class OutsideLimits:
    """`max_bytes`: of an answer, as it is when it is unpacked. `timeout_seconds`: of a request with its redirects and
    the whole answer."""

    max_bytes: int
    timeout_seconds: float
    redirects: int


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    body: bytes
    secret_headers: frozenset[str]

    def redirected(self, status: int, url: httpx.URL) -> "_Request":
        """The request for the target of a redirect. What is meant for one origin is not sent to another."""
        method, body, headers = self.method, self.body, dict(self.headers)
        if status not in KEEP_METHOD and method not in ("GET", "HEAD"):
            method, body = "GET", b""
            headers = {name: value for name, value in headers.items() if not name.lower().startswith("content-")}
        if _origin(url) != _origin(self.url):
            private = self.secret_headers | _PERSONAL
            headers = {name: value for name, value in headers.items() if name.lower() not in private}
        return _Request(method, url, headers, body, self.secret_headers)


class _OutsideTool(Tool):
    def __init__(self, policy: OutsidePolicy, limits: OutsideLimits) -> None:
        self._policy = policy
        self._limits = limits

    async def _carry_out(
        self, arguments: HttpFetchArguments | HttpRequestArguments, body: bytes, context: ToolContext
    ) -> ToolResult:
        request = await self._request(arguments, body, context)
        room = self._limits.max_bytes
        if arguments.save_as is not None:
            room = (await ensure_room(context.workspace, context.quota, arguments.save_as, None)).bytes
        if self.changes_outside:
            # It may have happened from here on, whatever becomes of the answer.
            await context.about_to_change()
        progress = RequestProgress()
        result = await self._result(request, arguments, room, progress, context)
        if result.error is None or not self.changes_outside:
            return result
        return replace(result, effect=progress.effect)

    async def _result(
        self,
        request: _Request,
        arguments: HttpFetchArguments | HttpRequestArguments,
        room: int,
        progress: RequestProgress,
        context: ToolContext,
    ) -> ToolResult:
        seconds = self._limits.timeout_seconds
        try:
            async with asyncio.timeout(seconds), self._answer(request, progress) as (response, final):
                says = f"{response.status_code} {_printable(response.reason_phrase)}".strip()
                context.output(f"{says}\n{final.method} {final.url}\n".encode())
                if _content_type(response):
                    context.output(f"{_content_type(response)}\n".encode())
                context.output(b"\n")
                if arguments.save_as is not None and response.is_success:
                    return await self._save(response, arguments.save_as, room, context)
                await self._show(response, arguments.max_bytes, context)
        except TimeoutError:
            return _failed("outside_timeout", f"no whole answer within {seconds:g} s (OUTSIDE_TIMEOUT_SECONDS)", True)
        except OutsideFailed as failed:
            return ToolResult(1, error=failed.error)
        except Superseded:
            raise
        except PlatformError as error:
            if not self.changes_outside:
                raise
            # It does not show whether the request was done.
            return _failed(error.code, error.message, error.retryable)
        except httpx.HTTPError as error:
            why = _printable(str(error)) or type(error).__name__
            return _failed("outside_unreachable", f"no answer from {request.url.host}: {shortened(why, 300)}", True)
        if response.is_success:
            return ToolResult()
        again = response.status_code in _MAY_PASS
        message = f"the answer's status is {says}; the output has its body"
        asked = retry_after(response.headers, datetime.now(UTC)) if again else None
        if asked is not None:
            message += f"; it asks to be asked again in {asked:.0f} s"
        return ToolResult(1, error=RunError("outside_status", message, again, retry_after=asked))

    async def _request(
        self, arguments: HttpFetchArguments | HttpRequestArguments, body: bytes, context: ToolContext
    ) -> _Request:
        url = self._policy.check(arguments.url)
        with_secrets = frozenset(
            name.lower() for name, value in arguments.headers.items() if SECRET_REFERENCE.search(value)
        )
        if with_secrets and url.scheme != "https" and not self._policy.allow_private:
            raise InvalidInput("url: secrets are sent by https only", field="url")
        headers = {"accept-encoding": "gzip", "accept": "*/*", "user-agent": f"agent-platform/{VERSION}"}
        for name, value in arguments.headers.items():
            filled = (await context.secrets.fill(value, host=host_and_port(url))).strip()
            if not is_header_value(filled):
                raise InvalidInput(
                    f"headers.{name}: with its secret, the value is not one line of printable ASCII characters",
                    field="headers",
                )
            headers = {other: kept for other, kept in headers.items() if other != name.lower()} | {name: filled}
        if isinstance(arguments, HttpRequestArguments) and arguments.idempotency_header:
            headers[arguments.idempotency_header] = idempotency_key(context.call, arguments)
        return _Request(arguments.method, url, headers, body, with_secrets)

    @asynccontextmanager
    async def _answer(
        self, request: _Request, progress: RequestProgress
    ) -> AsyncIterator[tuple[httpx.Response, _Request]]:
        """The first answer that is no redirect, and the request that it is of."""
        async with self._policy.client(self._limits.timeout_seconds) as client:
            for _ in range(self._limits.redirects + 1):
                sent = httpx.Request(
                    request.method,
                    request.url,
                    headers=dict(request.headers),
                    content=request.body or None,
                    extensions={"trace": progress.trace},
                )
                try:
                    response = await client.send(sent, stream=True)
                except httpx.InvalidURL:
                    raise _redirected_to_no_url() from None
                progress.answered(response.status_code)
                try:
                    location = response.headers.get("location")
                    if response.status_code not in _REDIRECTS or not location:
                        yield response, request
                        return
                finally:
                    await response.aclose()
                progress.redirected(response.status_code)
                request = request.redirected(response.status_code, self._policy.check(_joined(request.url, location)))
        raise OutsideFailed(RunError("outside_redirects", f"more than {self._limits.redirects} redirects"))

    async def _show(self, response: httpx.Response, max_bytes: int, context: ToolContext) -> None:
        type = _content_type(response)
        is_page = type.startswith(("text/html", "application/xhtml+xml"))
        most = min(MAX_PAGE_BYTES if is_page else max_bytes, self._limits.max_bytes)
        body, is_cut = bytearray(), False
        async for piece in _unpacked(response):
            body += piece
            if len(body) > most:
                del body[most:]
                is_cut = True
                break
        charset = response.charset_encoding
        says_text = (
            type.startswith("text/") or is_marked(bytes(body[:4])) or (codec_of(charset) or "").startswith("utf-16")
        )
        if b"\0" in body[:8192] and not says_text:
            context.output(b"(not text: fetch it with save_as)\n")
            return
        text = decoded(bytes(body), charset, is_page=is_page or _XML.match(type) is not None)
        if is_page:
            text = await context.parser.call(context.call.user_id, "the page", len(text), text_of_page, text)
        shown = text.encode("utf-8", "replace")
        context.output(shown[:max_bytes])
        if is_cut or len(shown) > max_bytes:
            context.output("\n… cut here; for all of it, give save_as, or a larger max_bytes\n".encode())

    async def _save(self, response: httpx.Response, path: str, room: int, context: ToolContext) -> ToolResult:
        if not self.changes_outside:
            await context.about_to_change()
        body = _at_most(_unpacked(response), self._limits.max_bytes)
        file = await context.workspace.write(path, limited(body, room))
        context.output(f"wrote {file.size:,} bytes to {path}\n".encode())
        return ToolResult(files_changed=(path,))


class HttpFetch(_OutsideTool):
    name = "http_fetch"
    description = (
        "Fetch a URL by GET or HEAD. Prints status, final URL and text (of HTML, what a reader sees), or writes the "
        "body to the file `save_as`. Reaches only hosts that the platform's operator allows."
    )
    arguments = HttpFetchArguments
    changes_outside = False
    repeatable = True
    risk = Risk.MEDIUM

    async def run(self, arguments: HttpFetchArguments, context: ToolContext) -> ToolResult:
        return await self._carry_out(arguments, b"", context)


class HttpRequest(_OutsideTool):
    name = "http_request"
    description = (
        "Send a POST, PUT, PATCH or DELETE request with a body of text. Prints status, final URL and text of the "
        "answer, or writes it to the file `save_as`. Reaches only hosts that the platform's operator allows."
    )
    arguments = HttpRequestArguments
    changes_outside = True
    announces_changes = True
    risk = Risk.HIGH

    def is_repeatable(self, arguments: Mapping[str, Any]) -> bool:
        return bool(arguments.get("idempotency_header"))

    async def run(self, arguments: HttpRequestArguments, context: ToolContext) -> ToolResult:
        return await self._carry_out(arguments, arguments.body.encode("utf-8", "replace"), context)


def http_tools(policy: OutsidePolicy, limits: OutsideLimits) -> tuple[Tool, ...]:
    return HttpFetch(policy, limits), HttpRequest(policy, limits)


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body, gzip taken off, in pieces of a bounded size however well it was packed."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for piece in response.aiter_raw(PIECE_BYTES):
            yield piece
        return
    if encoding not in ("gzip", "x-gzip"):
        raise OutsideFailed(
            RunError(
                "outside_encoding", f"the answer is packed in a way that was not asked for: {_printable(encoding)}"
            )
        )
    unpacker, is_begun = zlib.decompressobj(zlib.MAX_WBITS | 16), False
    try:
        async for piece in response.aiter_raw(PIECE_BYTES):
            is_begun = True
            while piece:
                if unpacker.eof:  # another member begins
                    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
                if text := unpacker.decompress(piece, PIECE_BYTES):
                    yield text
                piece = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error as error:
        raise OutsideFailed(RunError("outside_encoding", "the answer says that it is gzip, and is not")) from error
    if is_begun and not unpacker.eof:
        raise OutsideFailed(RunError("outside_unreachable", "the answer breaks off in the middle", retryable=True))


async def _at_most(pieces: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    passed = 0
    async for piece in pieces:
        passed += len(piece)
        if passed > max_bytes:
            raise TooLarge(f"the answer is larger than {readable_size(max_bytes)} (OUTSIDE_MAX_BYTES)")
        yield piece


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except (httpx.InvalidURL, ValueError):
        raise _redirected_to_no_url() from None


def idempotency_key(call: Call, arguments: HttpRequestArguments) -> str:
    """The key of a step's request: a UUID that is the same at each try. With other arguments (a person has changed them
    before the step was done) it is another request, and has another one."""
    request = f"{arguments.method} {arguments.url}\n{arguments.body}".encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(request).hexdigest()
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{call.run_id}/{call.step_id}/{digest}"))


def _redirected_to_no_url() -> OutsideFailed:
    return OutsideFailed(RunError("outside_redirects", "it redirects to what is no URL"))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _content_type(response: httpx.Response) -> str:
    return _printable(response.headers.get("content-type", ""))[:200].lower()


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _failed(code: str, message: str, retryable: bool) -> ToolResult:
    return ToolResult(1, error=RunError(code, message, retryable))
