"""What an API and a worker cost while nothing is to be done: CPU, and Redis commands.

Commands are those that clients send, as MONITOR shows them: what a script calls inside the server is not one more. Each
is counted for the process whose connection sent it. Everything that starts has settled before the count begins.
"""

import contextlib
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import redis

from bench._platform import Platform, platform
from bench._processes import cpu_seconds
from bench._result import Goal, report

SETTLE_SECONDS = 8.0
SECONDS = 45.0
CPU_GOAL_PERCENT = 0.5
COMMANDS_GOAL = 1.0


class Monitor:
    """Counts commands by the port that their client sends from."""

    def __init__(self, started: Platform) -> None:
        self.by_port: Counter[int] = Counter()
        self._client = redis.Redis(port=started.redis.port, decode_responses=True, socket_timeout=None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def listens(self) -> bool:
        return self._thread.is_alive()

    def _listen(self) -> None:
        # Until the server is stopped.
        with contextlib.suppress(redis.ConnectionError), cast(Any, self._client).monitor() as monitor:
            for line in monitor.listen():
                # Of a script's own calls the client's type is "lua".
                if line["client_type"] != "lua":
                    self.by_port[int(line["client_port"])] += 1


def ports_of(pid: int) -> set[int]:
    """The local TCP ports of a process's open connections."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:
            continue
    sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    return {int(fields[1].split(":")[1], 16) for fields in lines if fields[9] in sockets}


def measure() -> dict[str, dict[str, float]]:
    with platform("postgres") as started:
        pids = {"api": started.processes[0].pid, "worker": started.processes[1].pid}
        time.sleep(SETTLE_SECONDS)
        monitor = Monitor(started)
        time.sleep(0.5)
        before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
        monitor.by_port.clear()
        ports = {name: ports_of(pid) for name, pid in pids.items()}
        began = time.monotonic()
        time.sleep(SECONDS)
        seconds = time.monotonic() - began
        if not monitor.listens:
            raise RuntimeError("the count of commands broke off")
        counted = dict(monitor.by_port)
        found = {}
        for name, pid in pids.items():
            own = ports[name] | ports_of(pid)
            found[name] = {
                "cpu_percent": round((cpu_seconds([pid]) - before[name]) / seconds * 100, 2),
                "commands_per_second": round(sum(count for port, count in counted.items() if port in own) / seconds, 2),
            }
        known = sum(found[name]["commands_per_second"] for name in found)
        whole = sum(counted.values()) / seconds
        if whole > known + 0.1:
            raise RuntimeError(f"{whole:.2f} commands a second came, and only {known:.2f} are known whose they are")
        return found


def main() -> None:
    found = measure()
    goals = [
        goal
        for name, values in found.items()
        for goal in (
            Goal(f"{name}: CPU, %", values["cpu_percent"], CPU_GOAL_PERCENT),
            Goal(f"{name}: Redis commands/s", values["commands_per_second"], COMMANDS_GOAL),
        )
    ]
    report("idle", {"seconds": SECONDS, **found}, goals)


if __name__ == "__main__":
    main()
