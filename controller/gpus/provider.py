"""The port to whoever has GPU machines. An adapter changes nothing by itself; when to do what the loop decides.

An answer that does not come leaves it open whether something happened: then the loop looks for the label.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from backplane.domain.gpus import MachineSpec, Offer

InstanceStatus = Literal["starting", "running", "stopped", "unknown"]


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine as its provider reports it. `url`: where its model server is, once that is known; `kind`: the wire that
    it speaks. `slots`: calls that it takes at once; None: as the settings say for all."""

    contract: str
    label: str
    status: InstanceStatus
    micro_usd_per_hour: int | None = None
    url: str | None = None
    kind: str = "ollama"
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class NewInstance:
    """What is to be made. `token`, `certificate` and `key`: the machine's own (`backplane.machine_identity`)."""

    spec: MachineSpec
    label: str
    token: str
    certificate: str
    key: str


class CreateRefused(Exception):
    """The provider says that it has made nothing. It may be wrong."""


class GpuProvider(ABC):
    """Every call raises Unavailable, with `retry_after`, when there is no answer that can be used. No error names a
    key."""

    name: str

    @abstractmethod
    async def offers(self, spec: MachineSpec, most_micro_usd: int) -> Sequence[Offer]:
        """What can be had now for at most so much an hour, the cheapest first. `spec.gpu_type` as this platform writes
        it."""

    @abstractmethod
    async def create(self, offer: Offer, new: NewInstance) -> str:
        """Make a machine; its id there. Raises CreateRefused. After Unavailable it may have been made all the same."""

    @abstractmethod
    async def instances(self, kept: Mapping[str, str]) -> Sequence[Instance]:
        """All machines of the account, complete, whatever their labels. `kept`: the labels by the provider's ids that
        the caller has and wants to keep, for a provider that keeps no list of its own."""

    @abstractmethod
    async def destroy(self, contract: str) -> None:
        """Ask for the end of a machine. That it was done only a later list shows. One that is not there is no error."""

    @abstractmethod
    async def close(self) -> None: ...
