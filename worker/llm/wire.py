"""What all adapters share on HTTP: bounds on what is read, and the meaning of the server's refusals.

The client libraries read a line, an event or an error's body to its end before they look at it. So what may come in
one piece is bounded below them, in the transport, in bytes as they arrive; a compressed answer, which is small there
and huge above, is refused. Redirects are not followed: a key is for the server that it was given for.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx2

from backplane.domain.retry import retry_after
from backplane.domain.sizes import shortened
from backplane.errors import ModelError
from backplane.net.hang_ups import hang_ups_as
from worker.llm.answer import ModelAnswer
from worker.llm.base import (
    CallLimits,
    ModelContextTooLong,
    ModelOutputInvalid,
    ModelOutputTooLong,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
)
from worker.llm.catalogue import ServerSpec

CONNECT_SECONDS = 10.0
WORDS_CHARS = 400
"""How much of a server's own words an error shows."""
PIECE_MARGIN_BYTES = 256 * 1024
BYTES_PER_TEXT_BYTE = 8
"""JSON may spell a byte of text as six, in an envelope; servers repeat some of it."""

_BUSY = frozenset({408, 409, 425, 500, 502, 503, 504, 529})
_CONTEXT_WORDS = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum context",
    "prompt is too long",
    "input is too long",
    "too many tokens",
    "exceed_context_size",
    "max_prompt_tokens",
)


SENT_HEADERS = frozenset({"accept", "anthropic-version", "content-length", "content-type", "host", "user-agent"})


class BoundedTransport(httpx2.AsyncBaseTransport):
    """`piece_bytes`: the most that comes without the end of an event or a line. `key_headers`: how the server knows who
    asks. Beside these only SENT_HEADERS go out: the libraries add what they find in the environment, which is meant for
    their makers' servers, and information about this machine."""

    def __init__(self, piece_bytes: int, key_headers: Mapping[str, str], certificate: str = "") -> None:
        self._key_headers = key_headers
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        trust = _only(certificate) if certificate else True
        self._inner = httpx2.AsyncHTTPTransport(limits=limits, verify=trust)
        self._piece_bytes = piece_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        for name in set(request.headers) - SENT_HEADERS:
            del request.headers[name]
        request.headers.update({**self._key_headers, "accept-encoding": "identity"})
        with hang_ups_as(httpx2.ConnectError):
            response = await self._inner.handle_async_request(request)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await response.aclose()
            raise ModelOutputInvalid(f"the server's answer is compressed ({encoding[:20]}), which nobody asked for")
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        ends = {"text/event-stream": (b"\n\n", b"\r\n\r\n", b"\r\r"), "application/x-ndjson": (b"\n",)}
        # A refusal is read whole, whatever it calls itself.
        marks = ends.get(kind, ()) if response.is_success else ()
        response.stream = _BoundedStream(response.stream, self._piece_bytes, marks)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, piece_bytes: int, ends: tuple[bytes, ...]) -> None:
        self._stream = stream
        self._piece_bytes = piece_bytes
        self._ends = ends

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, tail = 0, b""
        async for data in self._stream:
            seen = tail + data
            end = max((at + len(mark) for mark in self._ends if (at := seen.rfind(mark)) >= 0), default=-1)
            size = len(seen) - end if end >= 0 else size + len(data)
            tail = seen[-3:]
            if size > self._piece_bytes:
                raise ModelOutputTooLong(f"the server sent {size} bytes in one piece and was cut off")
            yield data

    async def aclose(self) -> None:
        await self._stream.aclose()


def _only(certificate: str) -> ssl.SSLContext:
    """Nobody else has the certificate's key, so its names do not matter."""
    context = ssl.create_default_context(cadata=certificate)
    context.check_hostname = False
    return context


def http_client(limits: CallLimits, key_headers: Mapping[str, str], certificate: str = "") -> httpx2.AsyncClient:
    """The client for all calls to one server. `limits` bounds what it reads; times are given with each call.
    `certificate`: as a `ServerSpec` has it."""
    piece_bytes = limits.max_output_bytes * BYTES_PER_TEXT_BYTE + PIECE_MARGIN_BYTES
    return httpx2.AsyncClient(
        transport=BoundedTransport(piece_bytes, key_headers, certificate), follow_redirects=False, trust_env=False
    )


def key_of(spec: ServerSpec) -> str:
    """The server's key; empty: the server asks for none."""
    return spec.api_key.get_secret_value() if spec.api_key else ""


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def timeout_of(limits: CallLimits) -> httpx2.Timeout:
    return httpx2.Timeout(limits.silence_seconds, connect=min(CONNECT_SECONDS, limits.silence_seconds))


class Wire:
    """What errors need to know of a server. Its key is taken out of its words."""

    def __init__(self, spec: ServerSpec) -> None:
        self.name = spec.name
        self._api_key = key_of(spec)

    @asynccontextmanager
    async def call(self, limits: CallLimits, answer: ModelAnswer | None = None) -> AsyncIterator[None]:
        """Around one call. What goes wrong below comes out as an error of `base`. `answer`: what has come of it, for
        which the server may charge."""
        try:
            async with asyncio.timeout(limits.timeout_seconds) as timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():
                raise self._translated(error, limits, answer) from None
            raise ModelTimeout(
                f"model server {self.name}: no whole answer in {limits.timeout_seconds:g} s; MODEL_TIMEOUT_SECONDS "
                "sets the limit",
                usage=_charged(answer, sent=True),
            ) from None
        except Exception as error:
            # Without its cause: what libraries raise holds the request, and that the key.
            raise self._translated(error, limits, answer) from None

    def refusal(self, status: int, headers: Mapping[str, str], body: str) -> ModelError:
        """What an HTTP status other than 2xx means."""
        words, code = self._words(body)
        reason = f": {words}" if words else ""
        pause = retry_after(headers, datetime.now(UTC))
        if status == 429:
            if code == "insufficient_quota":
                return ModelRefused(f"model server {self.name} has no quota left for this key{reason}")
            return ModelRateLimited(f"model server {self.name} is asked too often (429){reason}", retry_after=pause)
        if _is_about_context(words, code) and status in (400, 413, 422, 500):
            return ModelContextTooLong(f"model server {self.name}: the prompt is longer than the model takes{reason}")
        if status in _BUSY or status >= 500:
            return ModelUnavailable(f"model server {self.name} answers {status}{reason}", retry_after=pause)
        if 300 <= status < 400:
            return ModelRefused(
                f"model server {self.name} sends elsewhere ({status}), which is not followed; set its final URL"
            )
        hint = "; check its key" if status in (401, 403) else ""
        return ModelRefused(f"model server {self.name} refuses the call ({status}){reason}{hint}")

    def broken_off(self, answer: ModelAnswer | None) -> ModelUnavailable:
        return ModelUnavailable(
            f"model server {self.name} broke off in the middle of its answer", usage=_charged(answer, sent=True)
        )

    def ended_early(self, reason: str, answer: ModelAnswer) -> ModelUnavailable:
        """The answer has an end, and the server's word for it is none that stands for a whole answer."""
        return ModelUnavailable(
            f"model server {self.name} ended its answer early: {shortened(reason, 100)!r}",
            usage=_charged(answer, sent=True),
        )

    async def not_streamed(self, response: httpx2.Response, answer: ModelAnswer) -> Any:
        """The JSON object that came where a stream of events was asked for; None where they come. Raises ModelError in
        the server's words when it is an error, for which some servers have no status."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream" or not (kind.endswith("json") or kind in ("text/plain", "text/html")):
            return None
        body = (await response.aread()).decode("utf-8", "replace")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.garbage(f"{kind} in place of events", answer)
        if "error" in found:
            raise self.failed_in_answer(body, answer)
        return found

    def garbage(self, what: str, answer: ModelAnswer | None) -> ModelOutputInvalid:
        return ModelOutputInvalid(
            f"model server {self.name} sent what its wire does not have: {what}", usage=_charged(answer, sent=True)
        )

    def failed_in_answer(self, body: str, answer: ModelAnswer) -> ModelError:
        """The error that the server sent in place of a piece of the answer."""
        words, code = self._words(body)
        if _is_about_context(words, code):
            return ModelContextTooLong(f"model server {self.name}: the prompt is longer than the model takes: {words}")
        return ModelUnavailable(f"model server {self.name} failed: {words}", usage=_charged(answer, sent=False))

    def _translated(self, error: Exception, limits: CallLimits, answer: ModelAnswer | None) -> ModelError:
        for cause in _causes(error):
            if isinstance(cause, ModelError):
                return cause
        for cause in _causes(error):
            if isinstance(cause, httpx2.ConnectTimeout | httpx2.ConnectError | httpx2.PoolTimeout):
                return ModelUnavailable(
                    f"model server {self.name} cannot be reached; is it running, and its URL right?"
                )
            if isinstance(cause, httpx2.TimeoutException):
                return ModelTimeout(
                    f"model server {self.name} sent nothing for {limits.silence_seconds:g} s; MODEL_SILENCE_SECONDS "
                    "sets the limit",
                    usage=_charged(answer, sent=True),
                )
            if isinstance(cause, httpx2.TransportError | httpx2.StreamError):
                return self.broken_off(answer)
            if isinstance(
                cause, ValueError | TypeError | AttributeError | KeyError | RecursionError | httpx2.HTTPError
            ):
                return self.garbage(type(cause).__name__, answer)
        return ModelUnavailable(f"model server {self.name}: the call failed ({type(error).__name__})")

    def _words(self, body: str) -> tuple[str, str]:
        """What the server says, in one short line, and its code for it."""
        text, code = body, ""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            inner = value.get("error", value)
            if isinstance(inner, dict):
                text = str(inner.get("message") or inner.get("detail") or inner)
                code = str(inner.get("code") or inner.get("type") or "")
            else:
                text = str(inner)
        line = " ".join(text.split())
        if self._api_key:
            line = line.replace(self._api_key, "[key]")
        line = "".join(letter for letter in line if letter.isprintable())
        return (shortened(line, WORDS_CHARS)), code


def _charged(answer: ModelAnswer | None, *, sent: bool) -> Any:
    """`sent`: the server had the whole prompt, and may charge for it though nothing came."""
    return answer.usage() if answer is not None and (sent or answer.has_begun) else None


def _is_about_context(words: str, code: str) -> bool:
    reason = f"{words} {code}".lower()
    return any(word in reason for word in _CONTEXT_WORDS)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
