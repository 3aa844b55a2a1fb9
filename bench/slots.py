"""200 runs of five users at four workers share a model server of four slots, which itself counts what it gets.

Each run calls again as soon as its call is over, so some 196 calls wait at any time. Twice: with 40 runs of each user
whose calls differ in length (120 to 480 ms), where users who take turns wait equally long; and with 100, 50, 25, 15 and
10 runs of users with equal calls, where turns mean that each user is served as often, and that who has fewer runs waits
less: were the waits equal there, a user would get more of the server by queueing more.
All calls go through the worker's gateway and OpenAI's wire, in the bare limit too, which is four clients that ask
nobody for a slot.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import redis

from bench._model_server import HOST
from bench._result import Goal, report
from tests.servers import RedisServer

SLOTS = 4
WORKERS = 4
SECONDS = 50.0
MARGIN_SECONDS = 1.0
"""Between the clients' measurement and the server's, which lies within it."""
LENGTHS = {"a": (40, 120.0), "b": (40, 210.0), "c": (40, 300.0), "d": (40, 390.0), "e": (40, 480.0)}
CROWDS = {"a": (100, 300.0), "b": (50, 300.0), "c": (25, 300.0), "d": (15, 300.0), "e": (10, 300.0)}
BARE = {"a": (SLOTS, 300.0)}
BUSY_GOAL, JAIN_GOAL = 0.95, 0.95

Users = dict[str, tuple[int, float]]
"""Runs, and milliseconds of a call."""
Figures = dict[str, object]


def jain(values: Sequence[float]) -> float:
    """1: all are equal; 1/n: one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


@contextlib.contextmanager
def model_server() -> Iterator[int]:
    """Its port."""
    command = [sys.executable, "-m", "bench._model_server", str(SLOTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def ask(port: int, method: str, path: str) -> dict[str, float]:
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
        connection.request(method, path)
        answer: dict[str, float] = json.loads(connection.getresponse().read())
        return answer


def drive(users: Users, redis_url: str, workers: int, slots: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What the server measured, and how long each call of each user waited."""
    with model_server() as port:
        commands = []
        for worker in range(workers):
            # The runs of a user that are left over go to the first workers.
            here = [(name, (runs + workers - 1 - worker) // workers, length) for name, (runs, length) in users.items()]
            arguments = map(str, (port, SECONDS, redis_url, slots, json.dumps(here)))
            commands.append([sys.executable, "-m", "bench._model_clients", *arguments])
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        time.sleep(SECONDS / 2 + MARGIN_SECONDS)
        ask(port, "POST", "/begin")
        time.sleep(SECONDS / 2 - 2 * MARGIN_SECONDS)
        measured = ask(port, "GET", "/end")
        waits: defaultdict[str, list[float]] = defaultdict(list)
        for client in clients:
            output, _ = client.communicate(timeout=SECONDS * 10)
            for user, seconds in json.loads(output).items():
                waits[user] += seconds
        return measured | {"most": ask(port, "GET", "/end")["most"]}, waits


def figures(users: Users, redis_url: str, workers: int = WORKERS, slots: int = SLOTS) -> Figures:
    measured, waits = drive(users, redis_url, workers, slots)
    means = {user: fmean(waits[user]) for user in users}
    return {
        "most at once": measured["most"],
        "busy": round(measured["busy"] / (SLOTS * measured["seconds"]), 4),
        "calls/s": round(measured["calls"] / measured["seconds"], 1),
        "mean wait, s": {user: round(mean, 3) for user, mean in means.items()},
        "calls of each user": {user: len(waits[user]) for user in users},
        "Jain of the mean waits": round(jain(list(means.values())), 4),
        "Jain of the calls served": round(jain([len(waits[user]) for user in users]), 4),
    }


def script_cost(redis_url: str) -> Figures:
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        statistics = client.info("commandstats")["cmdstat_evalsha"]
        client.config_resetstat()
    return {"scripts": statistics["calls"], "microseconds of one": round(statistics["usec_per_call"], 1)}


def main() -> None:
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="agent-bench-") as folder, contextlib.ExitStack() as stack:
        server = RedisServer(Path(folder))
        server.start()
        stack.callback(server.stop)
        bare = figures(BARE, server.url, workers=1, slots=0)
        for name, users in (("calls of unequal length", LENGTHS), ("users of unequal size", CROWDS)):
            server.flush()
            found[name] = figures(users, server.url) | {"in Redis": script_cost(server.url)}
    goals = []
    for name, values in found.items():
        goals.append(Goal(f"{name}: calls at once", float(str(values["most at once"])), SLOTS))
        goals.append(Goal(f"{name}: share of the slots busy", float(str(values["busy"])), BUSY_GOAL, at_least=True))
    waits = found["calls of unequal length"]["Jain of the mean waits"]
    served = found["users of unequal size"]["Jain of the calls served"]
    goals.append(Goal("calls of unequal length: Jain of the mean waits", float(str(waits)), JAIN_GOAL, at_least=True))
    goals.append(Goal("users of unequal size: Jain of the turns", float(str(served)), JAIN_GOAL, at_least=True))
    report("slots", {"bare limit": bare, **found}, goals)


if __name__ == "__main__":
    main()
