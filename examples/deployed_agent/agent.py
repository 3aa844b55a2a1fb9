"""An agent to be deployed: it writes a report on a text, and says what it does while it does it.

Plain Python, without a package. All that the platform expects of an agent is here (docs/deployments.md, "Run a deployed
agent"): the port, the health check, `POST /run`, an answer of lines of JSON, and the memory of keys by which a call
that comes again does nothing twice.
"""

import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEYS_KEPT = 1000
MAX_BODY_BYTES = 1024 * 1024

Event = dict[str, Any]


class Reports:
    """What was answered, by the key of the call. With several replicas this belongs into a database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: OrderedDict[str, Event] = OrderedDict()
        self._turns: dict[str, threading.Lock] = {}

    def once(self, key: str, write: Callable[[], Event]) -> Event:
        """The report of this key. A call that comes while the first one is at work waits for it."""
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._done:
                    return self._done[key]
            report = write()
            with self._lock:
                self._done[key] = report
                self._turns.pop(key, None)
                while len(self._done) > KEYS_KEPT:
                    self._done.popitem(last=False)
            return report


REPORTS = Reports()


def write_report(text: str, say: Callable[[str], None]) -> Event:
    words = text.split()
    say(f"reading {len(words)} words")
    often = Counter(word.strip(".,;:!?").lower() for word in words).most_common(3)
    say("writing the report")
    return {"words": len(words), "often": [word for word, _ in often]}


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if self.path != "/run" or size > MAX_BODY_BYTES:
            self.close_connection = True
            self._answer(404 if self.path != "/run" else 413, {"error": f"POST /run, at most {MAX_BODY_BYTES} bytes"})
            return
        given = json.loads(self.rfile.read(size))["input"]
        if not isinstance(given, dict) or not isinstance(given.get("text"), str):
            # A status of 4xx says that another try would be refused too.
            self._answer(400, {"error": 'give {"text": "…"} as the input'})
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            key = self.headers.get("Idempotency-Key", "")
            report = REPORTS.once(key, lambda: write_report(given["text"], lambda line: self._event({"log": line})))
            self._event({"result": report})
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            # The run was cancelled, or its time is over.
            self.close_connection = True

    def _event(self, event: Event) -> None:
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()

    def _answer(self, status: int, value: Event) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "3000"))), Agent)
    print("listening on port", server.server_port, flush=True)
    server.serve_forever()
