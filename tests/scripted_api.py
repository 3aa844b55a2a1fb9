"""An HTTP server on loopback that answers what a test says, one answer for each request, and remembers what was asked.

For what the real API does only when something breaks: a stream that is cut in the middle, a 503, a connection that is
closed without an answer. The server closes the connection after each answer and each answer says so: a client that
thinks the connection is open sends its next request into the closing one, now and then.
"""

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

NOTHING = b""
"""Close the connection without an answer."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedApi:
    """`answers` are raw HTTP; the last one stands for all that come after it."""

    answers: list[bytes]
    url: str = ""
    requests: list[Request] = field(default_factory=list)


def answer(status: int, body: Any, retry_after: str = "") -> bytes:
    return raw(status, json.dumps(body).encode(), retry_after=retry_after)


def problem(status: int, code: str, detail: str, retry_after: str = "") -> bytes:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    return answer(status, body, retry_after)


def stream(*events: dict[str, Any], whole: bool = True) -> bytes:
    """A stream of events, as the API writes them. Not `whole`: its end is missing, as when the line breaks."""
    return event_stream(b"".join(_frame(event) for event in events), whole=whole)


def event_stream(frames: bytes, *, whole: bool = True) -> bytes:
    """A stream whose frames stand in one chunk. Not `whole`: its last chunk is missing."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", "Connection: close"]
    chunk = f"{len(frames):x}\r\n".encode() + frames + b"\r\n" if frames else b""
    return "\r\n".join([*lines, "", ""]).encode() + chunk + (b"0\r\n\r\n" if whole else b"")


def _frame(event: dict[str, Any]) -> bytes:
    number = f"id: {event['id']}\n" if event["id"] else ""
    return f"{number}event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def raw(status: int, body: bytes, *, length: int | None = None, retry_after: str = "") -> bytes:
    """`length` is what the header claims, when it is not the truth."""
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body) if length is None else length}"]
    if retry_after:
        lines.append(f"Retry-After: {retry_after}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


@contextmanager
def scripted_api(answers: Sequence[bytes]) -> Iterator[ScriptedApi]:
    api = ScriptedApi(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            self.close_connection = True
            if not self.raw_requestline or not self.parse_request():
                return
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(self._chunks())
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            api.requests.append(Request(self.command, self.path, dict(self.headers), body))
            self.wfile.write(api.answers.pop(0) if len(api.answers) > 1 else api.answers[0])

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            host, port = server.server_address[:2]
            api.url = f"http://{host!s}:{port}"
            yield api
        finally:
            server.shutdown()
            thread.join()
