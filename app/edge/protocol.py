"""uvicorn's HTTP protocol with limits on size and time, for what comes before a request can be looked at.

uvicorn with httptools keeps a head of any size, waits for ever for the rest of a head or a body, goes on reading a body
that nobody wants, and queues any number of pipelined requests. Here each of these has an end, and a clear answer where
one can still be given. The times are looked at by one sweep over all connections (`ConnectionLimits`), so that no
request costs a timer.

A stream is never cut off here while its reader takes what it is sent: a request that has arrived whole has no time
limit. TLS, and limits on how fast connections come, are the proxy's.
"""

import asyncio
import http
import math
import resource
import signal
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httptools
import structlog
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.edge.connections import ConnectionLimits
from app.edge.origin import HEADERS
from app.errors import problem

HEAD_MAX_BYTES = 32 * 1024
"""The largest request line with all headers, in bytes; some proxies add large cookies or certificates."""
HEADERS_MAX = 100
TARGET_MAX_BYTES = 8 * 1024
"""The longest path with its query, in bytes."""
HEAD_SECONDS = 10.0
"""The time from a connection, or from the first byte of a further request, to the end of the head, in seconds."""
BODY_SILENCE_SECONDS = 30.0
BODY_MIN_BYTES_PER_SECOND = 1024
"""A body that comes more slowly is refused, once its first BODY_SILENCE_SECONDS are over."""
FRAMING_MAX_BYTES = 64 * 1024
"""How much more, in a chunked body, its chunk headers and trailers may take than its content."""
FRAMING_HEADERS = (b"content-length", b"transfer-encoding")
PIPELINED_MAX = 16
LINGER_SECONDS = 2.0
LINGER_BYTES = 8 * 1024 * 1024
"""What is still read after an answer that did not wait for the body, so that the client can read the answer."""
CLOSING_SECONDS = 10.0
RESERVED_DESCRIPTORS = 128
"""The descriptors of the process that are kept for Redis, the database, the store and files."""

SCOPE_CONNECTION = "agent.connection"

log = structlog.get_logger()


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.peer = ""
        self._limits = limits
        self._deadline = 0.0
        self._blocked_since = 0.0
        self._in_body = False
        self._head_bytes = 0
        self._head_headers = 0
        self._body_bytes = 0
        self._content_bytes = 0
        self._linger_bytes = LINGER_BYTES
        self._reads_no_more = False
        self._refusal: tuple[int, str, str] | None = None

    # --- of the transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self._deadline = self.loop.time() + HEAD_SECONDS
        self._limits.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.closed(self)
        super().connection_lost(exc)
        # Else the connection and its last request hold each other until the collector comes.
        cast(Scope, self.scope or {}).pop(SCOPE_CONNECTION, None)

    def pause_writing(self) -> None:
        self._blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._blocked_since = 0.0
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._reads_no_more and not self.transport.is_closing():
            if self._in_body:
                self._body_received(data)
                return
            if not self._head_bytes:
                self._deadline = self.loop.time() + HEAD_SECONDS
            room = HEAD_MAX_BYTES - self._head_bytes
            part, data = (data, b"") if len(data) <= room else (data[:room], data[room:])
            self._head_bytes += len(part)
            self._parse(part)
            if self._head_bytes >= HEAD_MAX_BYTES and not self._in_body:
                self._refuse(431, "head_too_large", f"the headers are larger than {HEAD_MAX_BYTES} bytes")
        if self._reads_no_more:
            self._drop(len(data))

    def _body_received(self, data: bytes) -> None:
        if self.cycle.response_complete:
            self._drop(len(data))
        else:
            now = self.loop.time()
            self._deadline = min(self._deadline + len(data) / BODY_MIN_BYTES_PER_SECOND, now + BODY_SILENCE_SECONDS)
        self._body_bytes += len(data)
        self._parse(data)
        if self._in_body and self._body_bytes > FRAMING_MAX_BYTES + 2 * self._content_bytes:
            self._refuse(400, "malformed_http", "the chunks of the body are too small; send larger ones")

    def _drop(self, count: int) -> None:
        """Bytes that nobody will look at."""
        self._linger_bytes -= count
        if self._linger_bytes < 0:
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing here speaks another protocol. The request is answered as it is, with its body (RFC 9110, 7.8),
            # and what follows is not read.
            if self._in_body:
                self._go_on_with_the_body(data[upgrade.args[0] :])
                return
            self._reads_no_more = True
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (400, "malformed_http", "this is not HTTP/1.1 as RFC 9112 has it")))

    def _go_on_with_the_body(self, data: bytes) -> None:
        """Handles a request that offers another protocol: its parser ends with the head, and reports no body.

        Another parser gets a head with the same framing, and then `data`, which came after it. Trailers are dropped.
        """

        def complete() -> None:
            self.on_message_complete()
            self._reads_no_more = True

        framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in FRAMING_HEADERS]
        self.parser = httptools.HttpRequestParser(SimpleNamespace(on_body=self.on_body, on_message_complete=complete))
        self._parse(b"".join([b"POST / HTTP/1.1\r\n", *framing, b"\r\n", data]))

    # --- of the parser ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_headers = 0
        cast(Scope, self.scope)[SCOPE_CONNECTION] = self

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > TARGET_MAX_BYTES:
            self._fault(414, "path_too_long", f"path and query are longer than {TARGET_MAX_BYTES} bytes")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # A trailer. Whoever looks at the headers must not find it among them.
        self._head_headers += 1
        if self._head_headers > HEADERS_MAX:
            self._fault(431, "head_too_large", f"there are more than {HEADERS_MAX} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED_MAX:
            self._fault(400, "malformed_http", f"more than {PIPELINED_MAX} requests wait on this connection")
        self._check_head()
        super().on_headers_complete()
        self._in_body = True
        self._body_bytes = self._content_bytes = 0
        self._linger_bytes = LINGER_BYTES
        self._deadline = self.loop.time() + BODY_SILENCE_SECONDS
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._fault(505, "http_version_not_supported", "use HTTP/1.1; HTTP/2 is for a proxy before the API")
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._fault(400, "malformed_http", f"send one header `Host` (RFC 9112, 3.2); there are {hosts}")
        if names.count(b"authorization") > 1:
            self._fault(400, "malformed_http", "send one header `Authorization`; there are several")

    def on_body(self, body: bytes) -> None:
        self._content_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and any(name in FRAMING_HEADERS for name, _ in self.headers):
            return  # Only the head is complete; the body follows.
        super().on_message_complete()
        self._in_body = False
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        wait = LINGER_SECONDS if self._in_body else self._limits.keep_alive_seconds
        self._deadline = self.loop.time() + wait

    def _fault(self, status: int, code: str, detail: str) -> None:
        """Out of the parser, which ends what it does."""
        self._refusal = (status, code, detail)
        raise _ProtocolFault

    # --- the end ---

    def check(self, now: float) -> None:
        if self.transport.is_closing():
            # What was written is not taken.
            self._blocked_since = self._blocked_since or now
            if now - self._blocked_since > CLOSING_SECONDS:
                self.abort()
        elif self._blocked_since and now - self._blocked_since > self._limits.send_seconds:
            self.abort()
        elif self._in_body and self.flow.read_paused and not self.cycle.response_complete:
            # It is the platform that does not read.
            self._deadline = now + BODY_SILENCE_SECONDS
        elif now > self._deadline and (self._in_body or self._reads_no_more or not self._is_answering):
            self._time_is_up()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.disconnected

    def _time_is_up(self) -> None:
        if self._reads_no_more:
            if not self._is_answering:
                self.transport.close()
        elif self._in_body and self._is_answering:
            detail = f"the body came more slowly than {BODY_MIN_BYTES_PER_SECOND} bytes a second"
            self._refuse(408, "request_timeout", detail)
        elif self._head_bytes and not self._in_body:
            self._refuse(408, "request_timeout", f"the headers did not come within {HEAD_SECONDS:g} seconds")
        else:
            self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer, if it is this request's turn to be answered, and read no more."""
        if self.transport.is_closing() or self._reads_no_more:
            return
        if self._is_answering:
            if not self._in_body or self.cycle.response_started or self.pipeline:
                self.transport.close()
                return
            # The application sees a disconnected client, and its answer is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._reads_no_more = True
        self._in_body = False
        self._linger_bytes = LINGER_BYTES
        self._deadline = self.loop.time() + LINGER_SECONDS
        self.flow.resume_reading()
        answer = problem(status, code, detail, headers={"Connection": "close", **HEADERS})
        lines = [b"HTTP/1.1 %d %s" % (status, http.HTTPStatus(status).phrase.encode())]
        lines += [name + b": " + value for name, value in (*self.server_state.default_headers, *answer.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))


class _ProtocolFault(Exception):
    pass


def install(config: uvicorn.Config, limits: ConnectionLimits) -> None:
    """Limit the connections of the server with this configuration, which has been loaded and accepts none yet."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.total + RESERVED_DESCRIPTORS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    possible = max(4, soft - RESERVED_DESCRIPTORS)
    if limits.total > possible:
        log.warning("fewer connections than API_CONNECTIONS_MAX are possible; raise `ulimit -n`", possible=possible)
        limits.total = possible
    limits.installed = True
    config.http_protocol_class = partial(LimitedProtocol, limits=limits)  # type: ignore[assignment]
    config.ws_protocol_class = None
    config.timeout_keep_alive = math.ceil(limits.keep_alive_seconds)
    config.encoded_headers = [header for header in config.encoded_headers if header != (b"server", b"uvicorn")]


def running_server() -> uvicorn.Server | None:
    """The server that runs this process. uvicorn does not pass it to an application, but its signal handler leads to
    it."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None
