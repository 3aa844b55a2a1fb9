"""What stands where an object store should be: a web page, a redirect, or a proxy that takes headers out of a real
store's answers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers import HOST

PAGE = b"<!DOCTYPE html>\n<html><head><meta charset=utf-8><title>Log in</title></head><body>Hello<br></body></html>"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def page(status: int) -> Answer:
    return Answer(status, {"Content-Type": "text/html; charset=utf-8"}, PAGE)


def without_header(port: int, header: str) -> Callable[[Asked], Answer]:
    """A proxy before the store on `port`, which loses this header."""

    def ask(asked: Asked) -> Answer:
        connection = HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request(asked.method, asked.path, asked.body, asked.headers)
            answer = connection.getresponse()
            gone = {header.lower(), "content-length", "transfer-encoding", "connection"}
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in gone}
            if asked.method == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length") or "0"
            return Answer(answer.status, headers, answer.read())
        finally:
            connection.close()

    return ask


@contextmanager
def answering(answer: Callable[[Asked], Answer]) -> Iterator[str]:
    """The URL of a server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = answer(
                Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            )
            self.send_response_only(given.status)
            for name, value in {"Content-Length": str(len(given.body)), **given.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(given.body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
