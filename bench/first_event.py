"""From `start` to the first and to the last event at a client, one run after another, on an idle platform.

The run is a plan of one step that does nothing (`file_list` of an empty workspace), so what is left is the path itself:
HTTP, commit, push, claim, plan, journal, events, settling, SSE. Beside it, in the same run and in turns, the least that
Redis alone can do between three processes' ends: LPUSH → BRPOP → PUBLISH → receive, on redis-py.
"""

import contextlib
import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import redis

from agentctl.embedded import dies_with_parent
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


@contextlib.contextmanager
def echo(server: RedisServer) -> Iterator[tuple[redis.Redis, Any]]:
    command = dies_with_parent([sys.executable, "-c", ECHO, str(server.port)])
    process = subprocess.Popen(command)
    client = redis.Redis(port=server.port)
    heard: Any = client.pubsub(  # type: ignore[no-untyped-call]
        ignore_subscribe_messages=True
    )
    heard.subscribe("bench:channel")
    heard.get_message(timeout=5)
    try:
        yield client, heard
    finally:
        client.lpush("bench:list", "stop")
        process.wait(10)
        heard.close()
        client.close()


def one_echo(client: redis.Redis, heard: Any) -> float:
    began = time.perf_counter()
    client.lpush("bench:list", "x")
    while heard.get_message(timeout=5) is None:
        pass
    return time.perf_counter() - began


def measure(database: str) -> dict[str, list[float]]:
    first, whole, bare = list[float](), list[float](), list[float]()
    with (
        platform(database) as started,
        echo(started.redis) as (client, heard),
        contextlib.closing(started.connection()) as control,
    ):
        for _ in range(WARM_UP):
            one_run(started, control)
            one_echo(client, heard)
        for _ in range(RUNS):
            to_first, to_last = one_run(started, control)
            first.append(to_first)
            whole.append(to_last)
            bare.append(one_echo(client, heard))
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
