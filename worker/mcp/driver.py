"""The program that calls an MCP server inside a sandbox; it is handed over as text and imports nothing but the library.

    stdin   {"command": [...], "requests": [[method, params], ...], "seconds": n}
    stdout  what the server wrote to its standard error, then one line: MARK and the JSON of the answers

It starts the server in the workspace, speaks line-delimited JSON-RPC with it (Model Context Protocol, stdio transport),
answers what the server asks in between with a refusal, and ends it when the last answer is there. A sandbox runs one
command to its end, so a server lives for one call: what is to last between calls belongs into files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import IO, Any

MARK = "\x1emcp "
PROTOCOL = "2025-06-18"


def main() -> int:
    asked = json.load(sys.stdin)
    server = subprocess.Popen(asked["command"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    alarm = threading.Timer(asked["seconds"], server.kill)
    alarm.start()
    answers = []
    try:
        client = {"name": "agent-platform", "version": "1"}
        hello = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": client}
        for number, (method, params) in enumerate([("initialize", hello), *asked["requests"]]):
            _send(server.stdin, {"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            answer = _answer(server, number)
            if number == 0:
                if "result" not in answer:
                    answers.append(answer)
                    break
                _send(server.stdin, {"jsonrpc": "2.0", "method": "notifications/initialized"})
            else:
                answers.append(answer)
        failure = None
    except (BrokenPipeError, EOFError, ValueError) as error:
        failure = str(error) or type(error).__name__
    finally:
        alarm.cancel()
        server.kill()
    code = server.wait()
    if failure is not None:
        failure = f"{failure}; the server ended with {code}"
    sys.stdout.write(MARK + json.dumps({"answers": answers, "failure": failure}) + "\n")
    return 0


def _send(pipe: IO[bytes], message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def _answer(server: subprocess.Popen[bytes], number: int) -> dict[str, Any]:
    assert server.stdin is not None
    assert server.stdout is not None
    while True:
        line = server.stdout.readline()
        if not line:
            raise EOFError("it ended, or took too long, before it answered")
        if not line.strip():
            continue
        try:
            message = json.loads(line)
        except ValueError:
            raise ValueError("it wrote to its standard output what is no JSON") from None
        if not isinstance(message, dict):
            raise ValueError("it wrote to its standard output what is no message")
        if message.get("id") == number and "method" not in message:
            return message
        if "method" in message and "id" in message:
            error = {"code": -32601, "message": "not supported here"}
            _send(server.stdin, {"jsonrpc": "2.0", "id": message["id"], "error": error})


if __name__ == "__main__":
    sys.exit(main())
