"""How much CPU a worker has used: of its cgroup where it has one of its own (a container), else of its process and all
that it started. In seconds of one processor, rising; and how many processors it may use.
"""

import os
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path

import psutil

from agentctl.exit_codes import CommandError, ExitCode


class CpuMeter(ABC):
    what: str
    cores: float

    @abstractmethod
    def used_seconds(self) -> float:
        """Raises CommandError when what is measured is gone."""


class CgroupMeter(CpuMeter):
    """A folder of cgroup v2: /sys/fs/cgroup/…, or /sys/fs/cgroup itself from inside a container."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "cpu.stat"
        self.what = f"cgroup {folder}"
        self.cores = _cores_of(folder)
        self.used_seconds()

    def used_seconds(self) -> float:
        try:
            fields = dict(line.split() for line in self._file.read_text("utf-8").splitlines())
            return int(fields["usage_usec"]) / 1e6
        except (OSError, KeyError, ValueError) as error:
            raise CommandError(ExitCode.USAGE, f"{self._file} tells no CPU time: {error}.") from None


class ProcessMeter(CpuMeter):
    """A process with all its descendants. What a child used before it ended counts once its parent has waited for it,
    so the figure never falls by more than it is late."""

    def __init__(self, pid: int) -> None:
        try:
            self._process = psutil.Process(pid)
        except psutil.Error as error:
            raise CommandError(ExitCode.USAGE, f"There is no process {pid} to measure: {error}.") from None
        self.what = f"process {pid} and what it starts"
        self.cores = float(len(os.sched_getaffinity(0)))

    def used_seconds(self) -> float:
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.Error as error:
            raise CommandError(ExitCode.UNREACHABLE, f"The measured worker is gone: {error}.") from None
        return sum(map(_seconds_of, family))


def _seconds_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    own = float(times.user + times.system)
    return own + float(getattr(times, "children_user", 0.0)) + float(getattr(times, "children_system", 0.0))


def find_worker() -> int:
    """The pid of the one worker on this machine. Raises CommandError when there is none, or more than one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(pair in (("-m", "worker"), ("-m", "standalone")) for pair in pairwise(words)):
            found.append(process.pid)
    if len(found) == 1:
        return int(found[0])
    many = f"several workers run here ({', '.join(map(str, found))})" if found else "no worker runs here"
    raise CommandError(ExitCode.USAGE, f"{many}: name what to measure with --pid or --cgroup".capitalize() + ".")


def _cores_of(folder: Path) -> float:
    """As many as cpu.max allows, of the folder and those above it; else the machine's."""
    cores = float(len(os.sched_getaffinity(0)))
    for place in (folder, *folder.parents):
        try:
            quota, period = (place / "cpu.max").read_text("utf-8").split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores
