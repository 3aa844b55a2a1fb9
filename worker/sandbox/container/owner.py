"""Which worker a container belongs to, so that the containers of a worker that was killed can be found and removed.

A worker's mark names its process: this start of the machine, its process namespace, its number there, and when it was
started, because numbers are used again. Only a worker that sees the same processes knows that one of them is gone; what
processes of other namespaces leave behind is removed when it is old.
"""

import os
from pathlib import Path

_STATE, _START_TIME = 0, 19
"""Positions in /proc/…/stat, counted after the name of the program."""


def own_mark() -> str:
    return f"{_machine()}.{_processes()}.{os.getpid()}.{_started(os.getpid())}"


def is_gone(mark: str) -> bool:
    """Whether the worker with this mark is certain to be no more."""
    parts = mark.split(".")
    if len(parts) != 4:
        return False
    machine, processes, pid, started = parts
    if machine != _machine():
        return True
    return processes == _processes() and pid.isdecimal() and _started(int(pid)) != started


def _machine() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip().replace("-", "")


def _processes() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _started(pid: int) -> str:
    """When it was started, in the kernel's ticks; empty when it is gone, also where its parent has not noticed yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[_STATE] in "ZX" else fields[_START_TIME]
