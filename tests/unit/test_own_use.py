"""What a process reads of itself: as the kernel shows it inside and outside of a container."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from backplane.process.own_use import OwnUse
from tests.metrics import broken_conventions, parsed

NETWORK = """Inter-|   Receive             |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:  999   9    0    0    0     0          0         0      999       9    0    0    0
  eth0:  100   1    0    0    0     0          0         0      200       2    0    0    0
  eth1:   10   1    0    0    0     0          0         0       20       2    0    0    0
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """/proc and /sys/fs/cgroup of a process in the group /a/b."""
    (tmp_path / "proc/self/net").mkdir(parents=True)
    (tmp_path / "proc/self/net/dev").write_text(NETWORK)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/x\n0::/a/b\n")
    group = tmp_path / "cgroups/a/b"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nnr_throttled 3\nthrottled_usec 500000\n")
    (group / "memory.current").write_text("4096\n")
    (group / "memory.max").write_text("8192\n")
    return tmp_path


def read(kernel: Path) -> dict[tuple[str, str], float]:
    """By name and direction."""
    registry = CollectorRegistry()
    registry.register(OwnUse(kernel / "proc", kernel / "cgroups"))
    families = parsed(generate_latest(registry).decode()).families
    assert broken_conventions(families) == []
    return {(one.name, one.labels.get("direction", "")): one.value for family in families for one in family.samples}


def test_a_container_shows_its_processor_memory_and_network(kernel: Path) -> None:
    found = read(kernel)
    assert found.pop(("agent_children_cpu_seconds_total", "")) >= 0
    assert found == {
        ("agent_network_bytes_total", "received"): 110,
        ("agent_network_bytes_total", "sent"): 220,
        ("agent_container_cpu_seconds_total", ""): 2.5,
        ("agent_container_cpu_throttled_seconds_total", ""): 0.5,
        ("agent_container_memory_bytes", ""): 4096,
        ("agent_container_memory_limit_bytes", ""): 8192,
    }


def test_what_has_no_limit_shows_none(kernel: Path) -> None:
    (kernel / "cgroups/a/b/memory.max").write_text("max\n")
    (kernel / "cgroups/a/b/cpu.stat").write_text("usage_usec 1\n")
    found = {name for name, _ in read(kernel)}
    assert "agent_container_memory_bytes" in found
    assert not found & {"agent_container_memory_limit_bytes", "agent_container_cpu_throttled_seconds_total"}


@pytest.mark.parametrize("gone", ["cgroups/a/b/memory.current", "proc/self/cgroup"])
def test_outside_of_a_container_there_is_nothing_of_one(kernel: Path, gone: str) -> None:
    (kernel / gone).unlink()
    assert {name for name, _ in read(kernel)} == {"agent_children_cpu_seconds_total", "agent_network_bytes_total"}


def test_without_a_network_there_is_nothing_of_one(kernel: Path) -> None:
    (kernel / "proc/self/net/dev").unlink()
    assert "agent_network_bytes_total" not in {name for name, _ in read(kernel)}


def test_what_children_took_is_counted_once_they_have_ended(kernel: Path) -> None:
    before = read(kernel)["agent_children_cpu_seconds_total", ""]
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert read(kernel)["agent_children_cpu_seconds_total", ""] > before
