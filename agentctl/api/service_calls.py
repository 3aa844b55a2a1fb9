"""The calls about services, which `agentctl.api.client.Client` makes."""

from abc import ABC, abstractmethod
from typing import Any

from agentctl.api.api_error import JsonObject
from agentctl.api.request_parts import given, segment

SERVICES = "/api/nas/services"


class ServiceCalls(ABC):
    """Every method raises as those of the client."""

    async def services(self) -> list[JsonObject]:
        found: list[JsonObject] = (await self._json("GET", SERVICES))["services"]
        return found

    async def service(self, name: str) -> JsonObject:
        return await self._json("GET", _of(name))

    async def put_service(self, name: str, fields: JsonObject) -> JsonObject:
        """Safe to repeat: the same again changes nothing."""
        return await self._json("PUT", _of(name), json=fields)

    async def delete_service(self, name: str, *, force: bool) -> None:
        """Sent again only when the first one cannot have arrived, as all deletions."""
        await self._nothing("DELETE", _of(name), params={"force": "true"} if force else {})

    async def service_status(self) -> JsonObject:
        return await self._json("GET", f"{SERVICES}/status")

    async def service_history(self, name: str, cursor: int | None = None, limit: int = 50) -> JsonObject:
        """The newest first."""
        return await self._json("GET", f"{_of(name)}/history", params=given(cursor=cursor, limit=limit))

    @abstractmethod
    async def _json(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> JsonObject: ...

    @abstractmethod
    async def _nothing(self, method: str, url: str, **request: Any) -> None: ...


def _of(name: str) -> str:
    return f"{SERVICES}/{segment(name)}"
