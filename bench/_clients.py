"""Clients that make, start and follow runs to their end, many at once, each run after run on one connection.

    python -m bench._clients PORT TOKEN CLIENTS RUNS

A process of its own, so that its work is in nobody's account, and no more of an HTTP client than is needed. Each run is
followed by server-sent events until `end`; one that is not completed, or whose events have a hole, is an error.
Prints {"seconds": of all runs, "cpu_seconds": of this process in that time, "machine_seconds": of CPU of the whole
machine, "events": of one run, "latencies": [seconds of each run from create to end]}.
"""

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

from bench._processes import machine_seconds

HOST = "127.0.0.1"
CONTENT = "0123456789abcdef" * 64
PLAN = {
    "steps": [{"id": "write", "tool": "file_write", "arguments": {"path": "result.txt", "content": CONTENT}}],
}


class Client:
    """One connection that stays open; calls one after the other."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: {HOST}\r\nAuthorization: Bearer {token}\r\n"
        self.events = 0

    async def run(self) -> float:
        """One run; the seconds from `create` to `end`."""
        began = time.perf_counter()
        created = await self._execute({"action": "create", "prompt": "bench", "plan": PLAN})
        await self._execute({"action": "start", "run_id": created["run_id"]})
        await self._follow(created["run_id"])
        return time.perf_counter() - began

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port)

    async def _execute(self, body: dict[str, object]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        head = f"POST /agent/execute HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status, headers = await self._answer()
        answer: dict[str, Any] = json.loads(await self._reader.readexactly(int(headers[b"content-length"])))
        if status >= 300:
            raise RuntimeError(f"{status}: {answer}")
        return answer

    async def _answer(self) -> tuple[int, dict[bytes, bytes]]:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = (line.split(b": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in headers}

    async def _follow(self, run_id: str) -> None:
        self._writer.write(f"GET /agent/logs/{run_id}/stream HTTP/1.1\r\n{self._head}\r\n".encode())
        status, headers = await self._answer()
        if status != 200 or headers.get(b"transfer-encoding") != b"chunked":
            raise RuntimeError(f"{status}: {headers}")
        chunks = []
        while size := int(await self._reader.readline(), 16):
            chunks.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        frames = [frame for frame in b"".join(chunks).split(b"\n\n") if frame.startswith(b"id: ")]
        numbers = [int(frame[4 : frame.index(b"\n")]) for frame in frames]
        if numbers != list(range(1, len(frames) + 1)) or b"event: end" not in frames[-1]:
            raise RuntimeError(f"run {run_id}: the events {numbers} arrived, and then the stream ended")
        if b'"completed"' not in frames[-1]:
            raise RuntimeError(f"run {run_id}: {frames[-1].decode()}")
        self.events = len(frames)


async def _all(port: int, token: str, count: int, runs: int) -> dict[str, object]:
    clients = [Client(port, token) for _ in range(min(count, runs))]
    await asyncio.gather(*(client.connect() for client in clients))
    left, latencies = iter(range(runs)), list[float]()

    async def follow(client: Client) -> None:
        for _ in left:
            latencies.append(await client.run())

    began, worked, machine = time.perf_counter(), time.process_time(), machine_seconds()
    await asyncio.gather(*map(follow, clients))
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "machine_seconds": machine_seconds() - machine,
        "events": clients[0].events,
        "latencies": latencies,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_all(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
