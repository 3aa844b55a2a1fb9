"""Those who use the platform in `bench.noisy_neighbour`: gentle users, and a hostile one. Each is a process of its own.

    python -m bench._neighbours users PORT SECONDS          tokens, one a line, on standard input
    python -m bench._neighbours hostile PORT SECONDS        its token on standard input

A gentle user makes, watches and starts a run at a steady pace, and prints at the end {"first": [seconds from `start` to
the first event], "last": [the same to the end]}. The hostile one starts runs, opens streams and uploads without end,
each again the moment it was refused, and prints what it was answered: {"start 201": 7, "stream 429": 300, …}. It has
the lowest priority of the machine's scheduler, because an attacker has a machine of its own.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import uvloop

HOST = "127.0.0.1"
RUNS_PER_SECOND = 2.0
"""Of each gentle user."""
PLAN = {"steps": [{"id": "nothing", "tool": "file_list"}]}
NAP = {"steps": [{"id": "nap", "tool": "shell", "arguments": {"script": "sleep 5"}}]}
STARTS, STARTERS = 10_000, 32
STREAMS = 500
UPLOADERS = 8
PIECE = b"x" * 65_536
ANSWER_SECONDS = 30.0


class Broken(Exception):
    """The server closed the connection, or does not answer."""


class Connection:
    """Calls one after the other; connects again when the server has closed it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self.head = f"Host: {HOST}\r\nAuthorization: Bearer {token}\r\n"
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def connect(self) -> asyncio.StreamWriter:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(HOST, self._port)
        return self.writer

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def execute(self, **body: object) -> tuple[int, dict[str, object]]:
        content = json.dumps(body).encode()
        head = f"POST /agent/execute HTTP/1.1\r\n{self.head}Content-Type: application/json\r\n"
        (await self.connect()).write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, object]]:
        status, headers = await self.answer_head()
        assert self.reader is not None
        body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        if headers.get(b"connection") == b"close":
            self.close()
        return status, json.loads(body) if body else {}

    async def answer_head(self) -> tuple[int, Mapping[bytes, bytes]]:
        assert self.reader is not None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        except (TimeoutError, EOFError, OSError) as error:
            self.close()
            raise Broken from error
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def watch(self, run_id: str) -> None:
        """Returns when the stream has begun."""
        (await self.connect()).write(f"GET /agent/logs/{run_id}/stream HTTP/1.1\r\n{self.head}\r\n".encode())
        status, _ = await self.answer_head()
        if status != 200:
            raise RuntimeError(f"a stream was answered {status}")
        await self.until(b"event: status")

    async def until(self, line: bytes) -> None:
        assert self.reader is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            while not (read := await self.reader.readline()).startswith(line):
                if not read:
                    raise Broken
            while await self.reader.readline() not in (b"\n", b""):
                pass


async def user(port: int, token: str, until: float, first: list[float], last: list[float]) -> None:
    control = Connection(port, token)
    next_at = time.monotonic() + random.random() / RUNS_PER_SECOND  # so that they do not call in step
    while next_at < until:
        await asyncio.sleep(next_at - time.monotonic())
        next_at = max(next_at + 1 / RUNS_PER_SECOND, time.monotonic())
        status, made = await control.execute(action="create", prompt="bench", plan=PLAN)
        if status != 201:
            raise RuntimeError(f"a gentle user was answered {status}: {made}")
        watching = Connection(port, token)
        await watching.watch(str(made["run_id"]))
        began = time.perf_counter()
        started = asyncio.create_task(control.execute(action="start", run_id=made["run_id"]))
        await watching.until(b"event: status")
        first.append(time.perf_counter() - began)
        await watching.until(b"event: end")
        last.append(time.perf_counter() - began)
        watching.close()
        status, answer = await started
        if status != 200:
            raise RuntimeError(f"a gentle user was answered {status}: {answer}")


async def users(port: int, tokens: list[str], seconds: float) -> dict[str, list[float]]:
    first, last = list[float](), list[float]()
    until = time.monotonic() + seconds
    await asyncio.gather(*(user(port, token, until, first, last) for token in tokens))
    return {"first": first, "last": last}


class Hostile:
    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self.answers = Counter[str]()
        self._starts = iter(range(STARTS))
        self._run_id = ""

    async def attack(self, seconds: float) -> Counter[str]:
        _, made = await Connection(self._port, self._token).execute(action="create", prompt="hostile")
        self._run_id = str(made["run_id"])
        attacks = [self._start() for _ in range(STARTERS)]
        attacks += [self._open_streams() for _ in range(STREAMS)]
        attacks += [self._upload(number) for number in range(UPLOADERS)]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*attacks)
        return self.answers

    async def _start(self) -> None:
        connection = Connection(self._port, self._token)
        for _ in self._starts:
            with suppress(Broken, OSError, EOFError):
                status, _ = await connection.execute(action="run", prompt="hostile", plan=NAP)
                self.answers[f"start {status}"] += 1

    async def _open_streams(self) -> None:
        connection = Connection(self._port, self._token)
        while True:
            with suppress(Broken, OSError, EOFError):
                request = f"GET /agent/logs/{self._run_id}/stream HTTP/1.1\r\n{connection.head}\r\n"
                (await connection.connect()).write(request.encode())
                status, headers = await connection.answer_head()
                self.answers[f"stream {status}"] += 1
                assert connection.reader is not None
                if status == 200:
                    await connection.reader.read()
                    connection.close()
                else:
                    await connection.reader.readexactly(int(headers.get(b"content-length", b"0")))

    async def _upload(self, number: int) -> None:
        connection = Connection(self._port, self._token)
        chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
        while True:
            with suppress(Broken, OSError, EOFError):
                writer = await connection.connect()
                path = f"/agent/runs/{self._run_id}/files/{number}"
                writer.write(f"PUT {path} HTTP/1.1\r\n{connection.head}Transfer-Encoding: chunked\r\n\r\n".encode())
                answered = asyncio.create_task(connection.answer_head())
                try:
                    while not answered.done():
                        writer.write(chunk)
                        await writer.drain()
                        self.answers["upload MiB"] += 1
                    status, _ = await answered
                    self.answers[f"upload {status}"] += 1
                finally:
                    answered.cancel()
                    await asyncio.wait([answered])
                    if not answered.cancelled():
                        answered.exception()
                    connection.close()


def main() -> None:
    role, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    tokens = sys.stdin.read().split()
    if role == "hostile":
        os.nice(19)
        result = uvloop.run(Hostile(port, tokens[0]).attack(seconds))
        result["upload MiB"] = result["upload MiB"] * len(PIECE) // 2**20
        print(json.dumps(result))
    else:
        print(json.dumps(uvloop.run(users(port, tokens, seconds))))


if __name__ == "__main__":
    main()
