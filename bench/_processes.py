"""What processes cost: CPU seconds of a process with all its descendants, or of all, from /proc. Linux only."""

import os
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time so far of these processes, of their living descendants, and of those that have ended and
    were waited for."""
    return sum(_ticks(pid) for pid in pids) / TICKS


def machine_seconds() -> float:
    """CPU seconds of everything on this machine so far."""
    user, nice, system, _idle, _waiting, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def children(pid: int) -> list[int]:
    """Raises FileNotFoundError or ProcessLookupError when there is no such process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _ticks(pid: int) -> int:
    try:
        # The name in brackets may hold anything; the numbers come after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        living = children(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    user, system, children_user, children_system = map(int, fields[11:15])
    return user + system + children_user + children_system + sum(map(_ticks, living))
