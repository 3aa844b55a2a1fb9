"""The calls about deployments, which `agentctl.api.client.Client` makes."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from agentctl.api.api_error import JsonObject
from agentctl.api.event_stream import StreamPosition
from agentctl.api.request_parts import given, segment

DEPLOYMENTS = "/api/deployments"


class DeploymentCalls(ABC):
    """Every method raises as those of the client."""

    async def create_deployment(self, new: JsonObject) -> JsonObject:
        """Safe to repeat: all tries carry the same Idempotency-Key."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._json("POST", DEPLOYMENTS, json=new, headers=headers)

    async def deployments(self, cursor: str | None = None, limit: int = 50, **filters: Any) -> JsonObject:
        """`filters`: namespace, status, agent_id, approval."""
        return await self._json("GET", DEPLOYMENTS, params=given(cursor=cursor, limit=limit, **filters))

    async def deployment(self, deployment_id: str) -> JsonObject:
        return await self._json("GET", _of(deployment_id))

    async def change_deployment(self, deployment_id: str, change: JsonObject) -> JsonObject:
        """Safe to repeat: the same content changes nothing."""
        return await self._json("PATCH", _of(deployment_id), json=change)

    async def act_on_deployment(
        self, action: str, deployment_id: str, body: JsonObject | None = None, *, repeatable: bool = True
    ) -> JsonObject:
        """scale, pause, resume or decision; rollback and restart are not `repeatable`: sent again only when the first
        one cannot have arrived."""
        request: dict[str, Any] = {} if body is None else {"json": body}
        return await self._json("POST", f"{_of(deployment_id)}/{action}", repeatable=repeatable, **request)

    async def delete_deployment(self, deployment_id: str, *, grace_seconds: int, force: bool) -> JsonObject:
        """By force it is sent again only when the first one cannot have arrived: the second would find nothing."""
        query = {"grace_seconds": grace_seconds, **({"force": "true"} if force else {})}
        return await self._json("DELETE", _of(deployment_id), repeatable=not force, params=query)

    async def revisions(self, deployment_id: str, cursor: int | None = None, limit: int = 20) -> JsonObject:
        """The newest first."""
        return await self._json("GET", f"{_of(deployment_id)}/revisions", params=given(cursor=cursor, limit=limit))

    async def deployment_events(self, deployment_id: str, cursor: int | None = None, limit: int = 50) -> JsonObject:
        """The newest first."""
        return await self._json("GET", f"{_of(deployment_id)}/events", params=given(cursor=cursor, limit=limit))

    async def explain_deployment(self, deployment_id: str) -> JsonObject:
        return await self._json("GET", f"{_of(deployment_id)}/explain")

    async def deployment_drift(self, deployment_id: str) -> JsonObject:
        return await self._json("GET", f"{_of(deployment_id)}/drift")

    async def deployment_logs(self, deployment_id: str, *, tail: int, follow: bool) -> AsyncGenerator[JsonObject, None]:
        """The newest `tail` lines, and with `follow` each one that comes, until the deployment is gone; reconnects by
        itself. What has the type `gap` says that lines are missing."""
        position = StreamPosition("", ended=not follow)
        url = f"{_of(deployment_id)}/logs?tail={tail}" + ("" if follow else "&follow=false")
        async with aclosing(self._stream(url, f"The log of deployment {deployment_id}", position)) as events:
            async for event in events:
                position.ended = position.ended or event["type"] == "end"
                yield event

    @abstractmethod
    async def _json(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> JsonObject: ...

    @abstractmethod
    def _stream(self, url: str, name: str, position: StreamPosition) -> AsyncGenerator[JsonObject, None]: ...


def _of(deployment_id: str) -> str:
    return f"{DEPLOYMENTS}/{segment(deployment_id)}"
