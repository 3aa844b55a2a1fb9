"""The calls about schedules, which `agentctl.api.client.Client` makes."""

import uuid
from abc import ABC, abstractmethod
from typing import Any

from agentctl.api.api_error import JsonObject
from agentctl.api.request_parts import segment

SCHEDULES = "/api/v1/schedules"


class ScheduleCalls(ABC):
    """Every method raises as those of the client."""

    async def put_schedule(self, name: str, schedule: JsonObject) -> JsonObject:
        """Safe to repeat: the same again sets the same."""
        return await self._json("PUT", _of(name), json=schedule)

    async def schedules(self) -> list[JsonObject]:
        schedules: list[JsonObject] = (await self._json("GET", SCHEDULES))["schedules"]
        return schedules

    async def schedule(self, name: str) -> JsonObject:
        return await self._json("GET", _of(name))

    async def delete_schedule(self, name: str) -> None:
        """Sent again only when the first one cannot have arrived: the second would find nothing."""
        await self._nothing("DELETE", _of(name))

    async def act_on_schedule(self, action: str, name: str) -> JsonObject:
        """pause or resume. Safe to repeat: what is so already stays so."""
        return await self._json("POST", f"{_of(name)}/{action}")

    async def fire_schedule(self, name: str) -> JsonObject:
        """Safe to repeat: all tries carry the same Idempotency-Key."""
        return await self._json("POST", f"{_of(name)}/fire", headers={"Idempotency-Key": str(uuid.uuid4())})

    @abstractmethod
    async def _json(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> JsonObject: ...

    @abstractmethod
    async def _nothing(self, method: str, url: str) -> None: ...


def _of(name: str) -> str:
    return f"{SCHEDULES}/{segment(name)}"
