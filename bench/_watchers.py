"""Clients that watch one stream of server-sent events, many at once, and count what they get.

    python -m bench._watchers PORT PATH TOKEN CLIENTS FRAMES

A process of its own, on raw sockets, so that it costs less than what it measures. Prints "connected" when each client
has its first frame, then a line of JSON: how many clients got every frame once and the end (`complete`), all frames,
when the last one came, and the delays of frames that carry the time when they were sent, in seconds. Frames are
counted by each client; one client in a hundred keeps all bytes, and the numbers are looked at one by one.
"""

import asyncio
import json
import re
import resource
import sys
import time
from statistics import median, quantiles
from typing import cast

import uvloop

HOST = "127.0.0.1"
FRAME = b"\ndata: "
END = b"event: end"
SENT = b" sent="
CONNECTS_AT_ONCE = 100
KEPT_OF = 100
LIMIT_SECONDS = 60


class Watchers:
    def __init__(self, path: str, token: str, clients: int, frames: int) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        self.clients = clients
        self.frames = frames
        self.begun = self.ended = self.complete = self.received = 0
        self.last_at = 0.0
        self.delays: list[float] = []
        self.connected = asyncio.Event()
        self.over = asyncio.Event()


class Watcher(asyncio.Protocol):
    def __init__(self, all_of_them: Watchers, number: int, begun: asyncio.Event) -> None:
        self._all = all_of_them
        self._begun = begun
        self._tail = b""
        self._frames = 0
        self._has_end = False
        self._kept = bytearray() if number % KEPT_OF == 0 else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio's by inheritance.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._all.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._kept is not None:
            self._kept += data
        data = self._tail + data
        self._frames += data.count(FRAME)
        # A frame may be cut anywhere; what is kept is too short to hold a whole mark, so none counts twice.
        self._tail = data[-len(FRAME) + 1 :]
        if not self._begun.is_set() and self._frames:
            self._begun.set()
            self._all.begun += 1
            if self._all.begun == self._all.clients:
                self._all.connected.set()
        if (at := data.rfind(SENT)) >= 0 and len(data) >= at + len(SENT) + 16:
            self._all.delays.append(now - float(data[at + len(SENT) : at + len(SENT) + 16]))
        if self._has_end or END in data[-400:]:
            self._has_end = True
            if self._frames >= self._all.frames:
                self._all.last_at = now
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._begun.set()
        whole = self._has_end and self._frames == self._all.frames
        if self._kept is not None:
            body = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", bytes(self._kept))
            numbers = [int(number) for number in re.findall(rb"^id: (\d+)$", body, re.MULTILINE)]
            whole = whole and numbers == list(range(1, self._all.frames + 1))
        self._all.complete += whole
        self._all.received += self._frames
        self._all.ended += 1
        if self._all.ended == self._all.clients:
            self._all.connected.set()
            self._all.over.set()


async def main() -> None:
    port, path, token = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    them = Watchers(path, token, int(sys.argv[4]), int(sys.argv[5]))
    loop, at_once = asyncio.get_running_loop(), asyncio.Semaphore(CONNECTS_AT_ONCE)

    async def connect(number: int) -> None:
        begun = asyncio.Event()
        async with at_once:
            await loop.create_connection(lambda: Watcher(them, number, begun), HOST, port)
            await begun.wait()

    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.gather(*map(connect, range(them.clients)))
        await them.connected.wait()
        print("connected", flush=True)
        await them.over.wait()
    delays = them.delays or [0.0, 0.0]
    print(
        json.dumps(
            {
                "complete": them.complete,
                "frames": them.received,
                "last_at": them.last_at,
                "delay_p50": median(delays),
                "delay_p99": quantiles(delays, n=100, method="inclusive")[98] if len(delays) > 1 else delays[0],
            }
        )
    )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(main())
