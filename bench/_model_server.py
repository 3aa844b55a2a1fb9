"""A simulated model server of so many slots, which checks that it never gets more calls at once.

    python -m bench._model_server SLOTS

A process of its own, and as little of OpenAI's wire as is needed: the prompt of a call says how many milliseconds its
answer takes. Where the first message is no number, as that of a role is not, the answer is a role's and takes
ROLE_MILLISECONDS. It computes nothing, so it stands in for a model and says nothing of what one costs.
`POST /begin` starts a measurement; `GET /end` answers {"seconds", "busy": slot seconds in it, "calls", "most": calls at
once since the server began}. The line that it prints first is its port.
"""

import asyncio
import json
import sys
import time
from typing import Any

HOST = "127.0.0.1"
ROLE_MILLISECONDS = 100.0


def answer_of(content: str) -> bytes:
    """The frames of a whole answer with this text."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    chunk = {
        "id": "a",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return b"".join(b"data: " + piece + b"\n\n" for piece in (json.dumps(chunk).encode(), b"[DONE]"))


ANSWER = answer_of("done")
ROLE_ANSWER = answer_of('{"answer": "done"}')


class Server:
    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._now = self._most = self._calls = 0
        self._busy = 0.0
        self._began = self._since = time.perf_counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                kind, answer = await self._answer(line.split()[1].decode(), await reader.readexactly(length))
                head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
                writer.write(head.encode() + answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes) -> tuple[str, bytes]:
        match path:
            case "/begin":
                self._change(0)
                self._began, self._busy, self._calls = self._since, 0.0, 0
            case "/end":
                self._change(0)
                seconds = self._since - self._began
                found = {"seconds": seconds, "busy": self._busy, "most": self._most, "calls": self._calls}
                return "application/json", json.dumps(found).encode()
            case "/v1/chat/completions":
                call: Any = json.loads(body)
                milliseconds, answer = _asked_for(str(call["messages"][0]["content"]))
                self._change(1)
                try:
                    await asyncio.sleep(milliseconds / 1000)
                finally:
                    self._change(-1)
                    self._calls += 1
                return "text/event-stream", answer
        return "application/json", b"{}"

    def _change(self, by: int) -> None:
        now = time.perf_counter()
        self._busy += min(self._now, self._slots) * (now - self._since)
        self._since = now
        self._now += by
        self._most = max(self._most, self._now)


def _asked_for(first: str) -> tuple[float, bytes]:
    """How many milliseconds the answer takes, and what it is."""
    try:
        return float(first), ANSWER
    except ValueError:
        return ROLE_MILLISECONDS, ROLE_ANSWER


async def main(slots: int) -> None:
    server = await asyncio.start_server(Server(slots).serve, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
