"""What containers that the platform has started use, added up by their kind: sandbox, service, deployment.

No container is named: their number has no end. A kind that could not be read when it was looked at last is missing.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backplane.containers.use import ContainerUse

ContainerKind = Literal["sandbox", "service", "deployment"]


class ContainerUseMetrics(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._found = dict[ContainerKind, Sequence[ContainerUse]]()
        registry.register(self)

    def read(self, kind: ContainerKind, found: Sequence[ContainerUse] | None) -> None:
        """None: it cannot be read now."""
        if found is None:
            self._found.pop(kind, None)
        else:
            self._found[kind] = found

    def collect(self) -> Iterator[GaugeMetricFamily]:
        count = GaugeMetricFamily("agent_containers", "Containers that run.", labels=["kind"])
        cores = GaugeMetricFamily("agent_containers_cpu_cores", "Processors that they use.", labels=["kind"])
        memory = GaugeMetricFamily("agent_containers_memory_bytes", "Memory that they use.", labels=["kind"])
        network = GaugeMetricFamily(
            "agent_containers_network_bytes",
            "Bytes that those that run now have moved since they began.",
            labels=["kind", "direction"],
        )
        for kind, found in self._found.items():
            all_together = sum(found, ContainerUse())
            count.add_metric([kind], len(found))
            cores.add_metric([kind], all_together.cores)
            memory.add_metric([kind], all_together.memory_bytes)
            network.add_metric([kind, "received"], all_together.received_bytes)
            network.add_metric([kind, "sent"], all_together.sent_bytes)
        return iter((count, cores, memory, network))
