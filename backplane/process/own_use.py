"""What this process uses beside what the client library shows: its ended children, its network, its container.

Each number is the kernel's own, read when it is asked for; where the kernel has none its metric is missing. The bytes
of the network are those of the namespace that the process is in: a pod or a container has one of its own, while on a
plain machine all processes share one, so there take the greatest, not the sum. What a container uses is read by cgroup
version 2 and counts all that runs in it: of a worker its local sandboxes too. A process in the machine's root group has
no such numbers.
"""

import resource
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LOOPBACK = "lo"
_RECEIVED, _SENT = 0, 8
"""Columns of /proc/net/dev."""


class OwnUse(Collector):
    """`proc`, `cgroups`: where the kernel shows what it knows."""

    def __init__(self, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
        self._network = proc / "self/net/dev"
        self._group = _own_group(proc, cgroups)

    def collect(self) -> Iterator[Metric]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        yield CounterMetricFamily(
            "agent_children_cpu_seconds",
            "Processor time of processes that this one started and that have ended: commands, pieces of jobs.",
            children.ru_utime + children.ru_stime,
        )
        yield from self._of_network()
        if self._group is not None:
            yield from _of_container(self._group)

    def _of_network(self) -> Iterator[Metric]:
        found = _network_bytes(_text(self._network))
        if found is None:
            return
        network = CounterMetricFamily(
            "agent_network_bytes",
            "Bytes of all interfaces but loopback in the process's network namespace.",
            labels=["direction"],
        )
        for direction, count in zip(("received", "sent"), found, strict=True):
            network.add_metric([direction], count)
        yield network


def _of_container(group: Path) -> Iterator[Metric]:
    cpu = dict(line.split() for line in _text(group / "cpu.stat").splitlines() if line.count(" ") == 1)
    if "usage_usec" in cpu:
        yield CounterMetricFamily(
            "agent_container_cpu_seconds",
            "Processor time of all that runs in the process's container.",
            int(cpu["usage_usec"]) / 1e6,
        )
    if "throttled_usec" in cpu:
        yield CounterMetricFamily(
            "agent_container_cpu_throttled_seconds",
            "How long the container was kept from the processor by its limit.",
            int(cpu["throttled_usec"]) / 1e6,
        )
    if (memory := _number(group / "memory.current")) is not None:
        yield GaugeMetricFamily("agent_container_memory_bytes", "Memory of all that runs in the container.", memory)
    if (limit := _number(group / "memory.max")) is not None:
        yield GaugeMetricFamily("agent_container_memory_limit_bytes", "The container's limit of memory.", limit)


def _own_group(proc: Path, cgroups: Path) -> Path | None:
    for line in _text(proc / "self/cgroup").splitlines():
        if line.startswith("0::"):
            group = cgroups / line.removeprefix("0::").strip().lstrip("/")
            # The root group shows neither.
            return group if (group / "memory.current").exists() else None
    return None


def _network_bytes(shown: str) -> tuple[int, int] | None:
    interfaces = [line.partition(":") for line in shown.splitlines() if ":" in line]
    counts = [rest.split() for name, _, rest in interfaces if name.strip() != LOOPBACK]
    if not shown:
        return None
    return sum(int(count[_RECEIVED]) for count in counts), sum(int(count[_SENT]) for count in counts)


def _number(path: Path) -> int | None:
    """None also for `max`, which is no limit."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
