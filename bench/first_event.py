"""From `start` to the first and to the last event at a client, one run after another, on an idle platform.

The run is a plan of one step that does nothing (`file_list` of an empty workspace), so what is left is the path itself:
HTTP, commit, push, claim, plan, journal, events, settling, SSE. Beside it, in the same run and in turns, the least that
Redis alone can do between three processes' ends: LPUSH → BRPOP → PUBLISH → receive, on the same client library.
"""

import asyncio
import contextlib
import http.client
import subprocess
import sys
import time
from statistics import median
from typing import Any, Self, cast

import redis.asyncio

from backplane.process.supervisor import dies_with_parent
from bench._platform import Platform, platform
from bench._result import Goal, report, spread
from tests.servers import RedisServer

RUNS = 300
WARM_UP = 20
WHOLE_GOAL = 12.0
PLAN = {"steps": [{"id": "nothing", "tool": "file_list"}]}

ECHO = """
import asyncio, redis.asyncio, sys
async def main():
    client = redis.asyncio.Redis(port=int(sys.argv[1]))
    while (await client.brpop("bench:list"))[1] != b"stop":
        await client.publish("bench:channel", "x")
    await client.aclose()
asyncio.run(main())
"""


def one_run(started: Platform, control: http.client.HTTPConnection) -> tuple[float, float]:
    """Seconds from sending `start` to the first and to the last event. The watcher is there before."""
    run_id = started.execute(control, action="create", prompt="bench", plan=PLAN)["run_id"]
    with contextlib.closing(started.connection()) as watching:
        watching.request("GET", f"/agent/logs/{run_id}/stream", headers=started.headers)
        stream = watching.getresponse()
        _until(stream, b"event: status")
        began = time.perf_counter()
        started.send(control, action="start", run_id=run_id)
        _until(stream, b"event: status")
        first = time.perf_counter()
        _until(stream, b"event: end")
        last = time.perf_counter()
        started.answer(control)
        return first - began, last - began


def _until(stream: http.client.HTTPResponse, line: bytes) -> None:
    while (read := stream.readline()) and not read.startswith(line):
        pass
    if not read:
        raise RuntimeError(f"the stream ended before {line!r}")
    while stream.readline() not in (b"\n", b""):
        pass


class Echo:
    """The bare loop. Both ends are asyncio programs on redis-py, as the platform's are."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        command = dies_with_parent([sys.executable, "-c", ECHO, str(self._server.port)])
        self._process = subprocess.Popen(command)
        self._client = redis.asyncio.Redis(port=self._server.port)
        self._subscription: Any = self._client.pubsub(ignore_subscribe_messages=True)
        self._loop.run_until_complete(self._subscription.subscribe("bench:channel"))
        return self

    def once(self) -> float:
        """Seconds from the push to the word."""
        return self._loop.run_until_complete(self._once())

    async def _once(self) -> float:
        began = time.perf_counter()
        await cast(Any, self._client.lpush("bench:list", "x"))
        while await self._subscription.get_message(timeout=5) is None:
            pass
        return time.perf_counter() - began

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._end())
        self._process.wait(10)
        self._loop.close()

    async def _end(self) -> None:
        await cast(Any, self._client.lpush("bench:list", "stop"))
        await self._subscription.aclose()
        await cast(Any, self._client).aclose()


def measure(database: str) -> dict[str, list[float]]:
    first, whole, bare = list[float](), list[float](), list[float]()
    with (
        platform(database) as started,
        Echo(started.redis) as echo,
        contextlib.closing(started.connection()) as control,
    ):
        for _ in range(WARM_UP):
            one_run(started, control)
            echo.once()
        for _ in range(RUNS):
            to_first, to_last = one_run(started, control)
            first.append(to_first)
            whole.append(to_last)
            bare.append(echo.once())
    return {"first_event": first, "last_event": whole, "bare_loop": bare}


def main() -> None:
    measured = {database: measure(database) for database in ("sqlite", "postgres")}
    ratios = {name: median(found["last_event"]) / median(found["bare_loop"]) for name, found in measured.items()}
    values: dict[str, object] = {
        name: {**{what: spread(times) for what, times in found.items()}, "whole_to_bare": round(ratios[name], 2)}
        for name, found in measured.items()
    }
    goal = Goal(
        "sqlite: p50 from start to the last event / p50 of the bare loop", round(ratios["sqlite"], 2), WHOLE_GOAL
    )
    report("first_event", {"runs": RUNS, **values}, [goal])


if __name__ == "__main__":
    main()
