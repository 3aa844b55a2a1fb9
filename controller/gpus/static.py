"""Machines that are there already: named in GPU_STATIC_MACHINES, and taken and given back in place of being rented.

The provider keeps no list: what is taken the rows say, so `instances` reports of what the caller keeps whatever the
setting still has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backplane.domain.gpus import MachineSpec, Offer
from controller.gpus.provider import CreateRefused, GpuProvider, Instance, NewInstance

NAME = "static"


@dataclass(frozen=True, slots=True)
class StaticMachine:
    name: str
    url: str
    kind: str
    slots: int
    gpu_type: str
    gpu_count: int
    micro_usd_per_hour: int


class StaticMachines(GpuProvider):
    name = NAME

    def __init__(self, machines: Sequence[StaticMachine]) -> None:
        self._machines = {machine.name: machine for machine in machines}
        self._labels: dict[str, str] = {}

    async def offers(self, spec: MachineSpec, most_micro_usd: int) -> Sequence[Offer]:
        found = [
            Offer(one.name, one.gpu_type, one.gpu_count, one.micro_usd_per_hour)
            for one in self._machines.values()
            if (one.gpu_type, one.gpu_count) == (spec.gpu_type, spec.gpu_count)
            and one.name not in self._labels
            and one.micro_usd_per_hour <= most_micro_usd
        ]
        return sorted(found, key=lambda one: one.micro_usd_per_hour)

    async def create(self, offer: Offer, new: NewInstance) -> str:
        if offer.id not in self._machines or self._labels.get(offer.id, new.label) != new.label:
            raise CreateRefused(f"machine {offer.id} is taken, or is not in GPU_STATIC_MACHINES any more")
        self._labels[offer.id] = new.label
        return offer.id

    async def instances(self, kept: Mapping[str, str]) -> Sequence[Instance]:
        self._labels |= {contract: label for contract, label in kept.items() if contract in self._machines}
        return [self._instance(self._machines[name], label) for name, label in self._labels.items()]

    async def destroy(self, contract: str) -> None:
        self._labels.pop(contract, None)

    async def close(self) -> None:
        pass

    @staticmethod
    def _instance(machine: StaticMachine, label: str) -> Instance:
        return Instance(
            machine.name, label, "running", machine.micro_usd_per_hour, machine.url, machine.kind, machine.slots
        )
