"""The program that calls an MCP server inside a sandbox; it is handed over as text and imports nothing but the library.

    stdin   {"command": [...], "method": m, "params": {...}, "seconds": n, "max_bytes": n, "most_pages": n}
    stdout  what the server wrote to its standard error, and lines of its standard output that are no messages; then one
            line: MARK and {"answers": [...], "failure": words or null, "noise": number of such lines}

It starts the server in the workspace, speaks line-delimited JSON-RPC with it (Model Context Protocol, stdio transport),
answers what the server asks in between, and ends it when the last answer is there. A list that comes in pages is one
answer a page. A sandbox runs one command to its end, so a server lives for one call: what is to last between calls
belongs into files.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

MARK = "\x1emcp "
PROTOCOL = "2025-06-18"
MOST_NOISE_LINES = 1000
MOST_NOISE_BYTES = 256 * 1024
ENDED = "it ended before it answered"
READ_BYTES = 64 * 1024
BEGINNING_BYTES, BEGINNING_CHARS = 400, 200
"""Of a line that cannot be read: by so many bytes it is known for a broken answer, and so much of it is shown."""
END_SECONDS = 1.0
"""For a server to end by itself when its standard input is closed, and again when it is asked to."""


class RequestRefused(Exception):
    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer


class ServerProcess:
    """`seconds`: for all its answers; `max_bytes`: of one line that it writes. It stays in the driver's process group:
    what it has started and leaves behind, the sandbox ends with the driver."""

    def __init__(self, command: list[str], seconds: float, max_bytes: int) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._max_bytes = max_bytes
        self._unread = b""
        self._number = 0
        self._noise_bytes = 0
        self._astray = ""
        self.noise = 0
        # Where it reads nothing, only its end ends a write.
        self._alarm = threading.Timer(seconds, self._process.kill)
        self._alarm.daemon = True
        self._alarm.start()

    def greet(self) -> None:
        """Raises Refused."""
        answer = self._ask("initialize", _hello(PROTOCOL))
        older = _supported(answer)
        if "error" in answer and older is not None:
            answer = self._ask("initialize", _hello(older))
        if "result" not in answer:
            raise RequestRefused(answer)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def pages(self, method: str, params: dict[str, Any], most: int) -> list[dict[str, Any]]:
        """The answer, and those to the pages that it names."""
        answers: list[dict[str, Any]] = []
        seen: set[str] = set()
        while True:
            answer = self._ask(method, params)
            answers.append(answer)
            result = answer.get("result")
            cursor = result.get("nextCursor") if isinstance(result, dict) else None
            if not isinstance(cursor, str) or not cursor or cursor in seen or len(answers) >= most:
                return answers
            seen.add(cursor)
            params = {**params, "cursor": cursor}

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        # From 1 on: some servers take the id 0 for none.
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        while True:
            for message in self._messages():
                if "method" in message:
                    self._react(message)
                elif message["id"] is None or str(message["id"]) == str(self._number):
                    return message
                else:
                    self._astray = (
                        f"; it sent an answer to a request that was not made: {_beginning(json.dumps(message))}"
                    )

    def _react(self, message: dict[str, Any]) -> None:
        if message.get("id") is None:
            return
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": -32601, "message": "not supported here"}
        self._send(answer)

    def _messages(self) -> list[dict[str, Any]]:
        """Those of the next line; none where it has none."""
        line = self._line()
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        found = value if isinstance(value, list) else [value]
        if line.strip() and not (found and all(map(_is_message, found))):
            if _is_meant_as_message(line, value, self._number):
                raise ValueError(f"it sent what is no answer: {_beginning(line)}")
            self._pass_on(line)
            return []
        return found if line.strip() else []

    def _line(self) -> bytes:
        """The next one, with its end, which the last may lack."""
        assert self._process.stdout is not None
        pieces, size = [self._unread], len(self._unread)
        while b"\n" not in pieces[-1]:
            left = self._ends_at - time.monotonic()
            # Its end alone would not do: what it has started may hold the pipe open.
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(self._too_slow())
            pieces.append(os.read(self._process.stdout.fileno(), READ_BYTES))
            size += len(pieces[-1])
            if not pieces[-1]:
                break
            if size > self._max_bytes + READ_BYTES:
                break
        line, end, self._unread = b"".join(pieces).partition(b"\n")
        if not line and not end:
            if time.monotonic() >= self._ends_at:
                raise TimeoutError(self._too_slow())
            raise EOFError(ENDED)
        if len(line) > self._max_bytes:
            raise ValueError(f"it sent more than {self._max_bytes:,} bytes in a line")
        return line + end

    def _too_slow(self) -> str:
        return f"it took too long: no answer within {self._seconds:g} s (MCP_TIMEOUT_SECONDS){self._astray}"

    def _pass_on(self, line: bytes) -> None:
        self.noise += 1
        self._noise_bytes += len(line)
        if self.noise > MOST_NOISE_LINES or self._noise_bytes > MOST_NOISE_BYTES:
            raise ValueError(
                "it writes too much to its standard output that is no JSON-RPC; what is for people belongs on its "
                "standard error"
            )
        sys.stdout.buffer.write(line.replace(MARK[:1].encode(), b"?").rstrip(b"\r\n") + b"\n")
        sys.stdout.buffer.flush()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # Whether it ended before or after it was asked is chance.
            raise EOFError(ENDED) from None

    def end(self) -> None:
        """As the protocol has it: its input is closed, then it is asked to end, then it is killed."""
        assert self._process.stdin is not None
        self._alarm.cancel()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for signal_it in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(END_SECONDS)
                break
            except subprocess.TimeoutExpired:
                signal_it()

    def kill(self) -> int:
        """What it ended with."""
        self._alarm.cancel()
        self._process.kill()
        return self._process.wait()


def main() -> int:
    asked = json.load(sys.stdin)
    answers: list[dict[str, Any]] = []
    failure: str | None = None
    noise = 0
    try:
        server = ServerProcess(asked["command"], asked["seconds"], asked["max_bytes"])
    except OSError as error:
        failure = f"it cannot be started: {error.strerror}: {asked['command'][0]}"
    else:
        try:
            server.greet()
            answers = server.pages(asked["method"], asked["params"], asked["most_pages"])
            server.end()
        except RequestRefused as refused:
            answers = [refused.answer]
            server.end()
        except TimeoutError as error:
            failure = str(error)
        except (OSError, EOFError, ValueError) as error:
            failure = f"{str(error) or type(error).__name__}; the server ended with {server.kill()}"
        server.kill()
        noise = server.noise
    sys.stdout.write(MARK + json.dumps({"answers": answers, "failure": failure, "noise": noise}) + "\n")
    return 0


def _hello(version: str) -> dict[str, Any]:
    client = {"name": "agent-platform", "version": "1"}
    return {"protocolVersion": version, "capabilities": {}, "clientInfo": client}


def _supported(answer: dict[str, Any]) -> str | None:
    """The version that a server names which refuses ours."""
    try:
        names = answer["error"]["data"]["supported"]
        return next((name for name in sorted(names, reverse=True) if isinstance(name, str)), None)
    except (KeyError, TypeError):
        return None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("method"), str) or ("id" in value and ("result" in value or "error" in value))


def _is_meant_as_message(line: bytes, value: Any, number: int) -> bool:
    """Of a line that is no message. A broken answer, one of another shape, and a page are; a banner and a log line in
    JSON are noise."""
    if isinstance(value, dict):
        return "jsonrpc" in value or ("id" in value and str(value["id"]) == str(number))
    if isinstance(value, list):
        return any(isinstance(one, dict) and "jsonrpc" in one for one in value)
    begins = line.lstrip()[:BEGINNING_BYTES].lower()
    is_json = begins.startswith((b"{", b"[{", b'"jsonrpc"')) and b'"jsonrpc"' in begins
    return is_json or begins.startswith((b"<!doctype html", b"<html"))


def _beginning(line: bytes | str) -> str:
    """Of a line, for people. Where it is cut, there is a mark."""
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    text = " ".join(text[: 4 * BEGINNING_CHARS].split())
    return text if len(text) <= BEGINNING_CHARS and len(line) <= 4 * BEGINNING_CHARS else f"{text[:BEGINNING_CHARS]}…"


if __name__ == "__main__":
    sys.exit(main())
