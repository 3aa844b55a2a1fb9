"""What the loop of GPU machines counts. The controller that leads shows the machines; another one shows none."""

from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from backplane.domain.budgets import MICRO
from backplane.domain.gpus import Machine, MachineState, Spending


class GpuMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._machines = Gauge("agent_gpu_machines", "GPU machines by state.", ["state"], registry=registry)
        self._per_hour = Gauge("agent_gpu_usd_per_hour", "What all GPU machines cost in an hour.", registry=registry)
        self._today = Gauge("agent_gpu_usd_today", "What they have cost since midnight (UTC).", registry=registry)
        self._waiting = Gauge("agent_gpu_waiting", "Calls or runs that the autoscaler goes by.", registry=registry)
        self._starts = Counter("agent_gpu_starts", "GPU machines that a provider was asked for.", registry=registry)
        self._failures = Counter(
            "agent_gpu_failures", "GPU machines that did not become healthy, or were lost.", registry=registry
        )
        self._orphans = Counter(
            "agent_gpu_orphans", "Machines under a label of the platform that no row wanted.", registry=registry
        )

    def saw(self, machines: Sequence[Machine], spending: Spending, waiting: int | None) -> None:
        tally = Tally(machine.state for machine in machines)
        for state in MachineState:
            if state is not MachineState.ENDED:
                self._machines.labels(state.value).set(tally[state])
        self._per_hour.set(spending.per_hour / MICRO)
        self._today.set(spending.today / MICRO)
        self._waiting.set(float("nan") if waiting is None else waiting)

    def another_leads(self) -> None:
        self._machines.clear()
        for gauge in (self._per_hour, self._today, self._waiting):
            gauge.set(float("nan"))

    def started(self) -> None:
        self._starts.inc()

    def failed(self) -> None:
        self._failures.inc()

    def orphan_destroyed(self) -> None:
        self._orphans.inc()
