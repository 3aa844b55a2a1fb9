"""What a user notices of strangers: the time of a call with a token, with and without a flood of calls that have none.

The flood is a process of its own at another address of loopback: wrong tokens on as many connections as it can keep,
each asking again as soon as it is answered, and 400 connections that never send a whole request. In turns with silence.
"""

import asyncio
import contextlib
import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from backplane.process.supervisor import dies_with_parent
from bench._platform import HOST, Platform, platform
from bench._result import Goal, report, spread

CALLS = 300
ROUNDS = 3
FLOODING = 64
SILENT = 400
SOURCE = "127.0.0.2"
LONGEST_SECONDS = 120.0


async def flood(port: int) -> None:
    """Until it is killed, or LONGEST_SECONDS."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_SECONDS):
            print("flooding", flush=True)
            asking = [_ask(port, number) for number in range(FLOODING)]
            await asyncio.gather(*asking, *[_hold(port) for _ in range(SILENT)])


async def _ask(port: int, number: int) -> None:
    asked = 0
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(HOST, port, local_addr=(SOURCE, 0))
            while True:
                asked += 1
                token = f"agt_{number:03}{asked:040}"
                writer.write(f"GET /agent/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)


async def _hold(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, port, local_addr=(SOURCE, 0))
            writer.write(b"POST /agent/execute HTTP/1.1\r\nContent-Length: 1000000\r\nX-")
            await reader.read()
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def flooding(module: str, *arguments: str) -> Iterator[None]:
    """`module` floods in a process of its own (`--flood`) until the block ends. It prints a line when it has begun."""
    command = dies_with_parent([sys.executable, "-m", module, "--flood", *arguments])
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        time.sleep(1.0)
        yield
    finally:
        process.kill()
        process.communicate()


def calls(started: Platform) -> list[float]:
    """Seconds of each, on one connection that is opened anew for each round."""
    with contextlib.closing(started.connection()) as connection:
        return [_call(started, connection) for _ in range(CALLS)]


def _call(started: Platform, connection: http.client.HTTPConnection) -> float:
    began = time.perf_counter()
    connection.request("GET", "/agent/me", headers=started.headers)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"a user was answered {response.status}")
    return time.perf_counter() - began


def main() -> None:
    alone: list[float] = []
    beside: list[float] = []
    with platform("sqlite", workers=0, API_ANONYMOUS_CONNECTIONS_PER_ADDRESS="256") as started:
        calls(started)
        for _ in range(ROUNDS):
            alone += calls(started)
            with flooding("bench.strangers", str(started.port)):
                beside += calls(started)
    ratio = round(median(beside) / median(alone), 2)
    values = {"calls": len(alone), "alone": spread(alone), "beside_strangers": spread(beside)}
    report("strangers", values, [Goal("p50 beside strangers, to that alone", ratio, 2.0)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--flood"]:
        asyncio.run(flood(int(sys.argv[2])))
    else:
        main()
