"""The calls about GPU machines, as part of the client."""

from abc import ABC, abstractmethod
from typing import Any

from agentctl.api.api_error import JsonObject
from agentctl.api.request_parts import segment

GPUS = "/api/vastai"


class GpuCalls(ABC):
    """Every method raises as those of the client."""

    async def gpu_fleet(self) -> JsonObject:
        return await self._json("GET", f"{GPUS}/explain")

    async def gpu_machines(self, *, ended: bool = False) -> list[JsonObject]:
        """At most 200."""
        query = {"ended": str(ended).lower(), "limit": 200}
        machines: list[JsonObject] = (await self._json("GET", f"{GPUS}/instances", params=query))["instances"]
        return machines

    async def start_gpu_machine(self, wanted: JsonObject) -> JsonObject:
        """Sent again only when the first one cannot have arrived: the second would be another machine."""
        return await self._json("POST", f"{GPUS}/instances", repeatable=False, json=wanted)

    async def stop_gpu_machine(self, machine: str) -> JsonObject:
        """Safe to repeat."""
        return await self._json("DELETE", f"{GPUS}/instances/{segment(machine)}")

    async def explain_gpu_machine(self, machine: str) -> JsonObject:
        return await self._json("GET", f"{GPUS}/instances/{segment(machine)}/explain")

    @abstractmethod
    async def _json(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> JsonObject: ...
