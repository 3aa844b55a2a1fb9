"""Steps a second of a handler with 1,000 steps that do nothing, beside DBOS on the same database.

Ours is a whole run: by HTTP, queued, taken, each step with two events that a watcher of the stream receives, to its
end. DBOS is called in its own process, without HTTP, queue or events. Both are asynchronous functions that are awaited
one after another, so it is the latency of one journalled step that is measured.
"""

import contextlib
import json
import subprocess
import time
from pathlib import Path
from statistics import median

from bench._contest import PEERS
from bench._platform import Platform, platform
from bench._result import Goal, report
from tests.servers import PostgresServer

ROOT = Path(__file__).parent.parent
STEPS = 1_000
ROUNDS = 3
DATABASES = ("postgres", "sqlite")
FILE = str(Path(__file__).with_name("_empty_steps.py"))


def ours(started: Platform) -> float:
    """Seconds from the request to the end of the run at a watcher of its stream."""
    with contextlib.closing(started.connection()) as control, contextlib.closing(started.connection()) as watching:
        began = time.perf_counter()
        run_id = started.execute(control, action="run", handler="empty-steps", input=STEPS)["run_id"]
        watching.request("GET", f"/agent/logs/{run_id}/stream", headers=started.headers)
        response, steps = watching.getresponse(), 0
        for line in response:
            if line.startswith(b"event: step"):
                steps += 1
            elif line.startswith(b"event: end"):
                break
        seconds = time.perf_counter() - began
    if steps != 2 * STEPS:
        raise RuntimeError(f"{steps} events of steps were received, and not {2 * STEPS}")
    return seconds


def theirs(started: Platform, python: Path) -> list[float]:
    folder = Path(started.environment["WORKSPACE_DIR"]).parent
    url = f"sqlite:///{folder / 'dbos.db'}"
    for server in started.servers:
        if isinstance(server, PostgresServer):
            url = server.url(server.create_database())
    command = [str(python), str(ROOT / "bench" / "_dbos.py"), url, str(STEPS), str(ROUNDS)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=folder)
    seconds: list[float] = json.loads(finished.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    values: dict[str, object] = {}
    goals: list[Goal] = []
    for database in DATABASES:
        with platform(database, HANDLERS_FILE=FILE, RUN_LOG_LINES_PER_SECOND="0") as started:
            ours(started)
            rates = {
                "ours": STEPS / median(ours(started) for _ in range(ROUNDS)),
                "DBOS": STEPS / median(theirs(started, PEERS / "python")),
            }
        values[database] = {name: round(rate, 1) for name, rate in rates.items()}
        goals.append(
            Goal(f"{database}: steps/s, to DBOS's", round(rates["ours"] / rates["DBOS"], 2), 1.0, at_least=True)
        )
    report("handlers", values, goals)


if __name__ == "__main__":
    main()
