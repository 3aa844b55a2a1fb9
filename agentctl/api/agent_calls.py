"""The calls about agents and their pools, which `agentctl.api.client.Client` makes."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from agentctl.api.api_error import JsonObject
from agentctl.api.event_stream import StreamPosition
from agentctl.api.request_parts import given, segment

AGENTS = "/api/v1/agents"
POOLS = f"{AGENTS}/pools"


class AgentCalls(ABC):
    """Every method raises as those of the client."""

    async def pools(self) -> list[JsonObject]:
        pools: list[JsonObject] = (await self._json("GET", POOLS))["pools"]
        return pools

    async def create_pool(self, pool: JsonObject) -> JsonObject:
        """Sent again only when the first one cannot have arrived: the second would find the pool there."""
        return await self._json("POST", POOLS, repeatable=False, json=pool)

    async def change_pool(self, name: str, change: JsonObject) -> JsonObject:
        return await self._json("PATCH", f"{POOLS}/{segment(name)}", json=change)

    async def delete_pool(self, name: str) -> None:
        """Sent again only when the first one cannot have arrived, as all deletions."""
        await self._nothing("DELETE", f"{POOLS}/{segment(name)}")

    async def spawn(self, pool: str, agent: JsonObject) -> JsonObject:
        """Safe to repeat: the same name is the same agent."""
        return await self._json("POST", f"{POOLS}/{segment(pool)}/agents", json=agent)

    async def agents(self, cursor: str | None = None, limit: int = 50, **filters: Any) -> JsonObject:
        """`filters`: pool, name, id_beginning, terminated."""
        return await self._json("GET", AGENTS, params=given(cursor=cursor, limit=limit, **filters))

    async def agent(self, agent_id: str) -> JsonObject:
        return await self._json("GET", _of(agent_id))

    async def change_agent(self, agent_id: str, change: JsonObject) -> JsonObject:
        return await self._json("PATCH", _of(agent_id), json=change)

    async def delete_agent(self, agent_id: str) -> None:
        await self._nothing("DELETE", _of(agent_id))

    async def act_on_agent(self, action: str, agent_id: str, **options: bool) -> JsonObject:
        """pause, resume or terminate. Safe to repeat: what is so already stays so."""
        wanted = {name: "true" for name, value in options.items() if value}
        return await self._json("POST", f"{_of(agent_id)}/{action}", params=wanted)

    async def send_message(self, agent_id: str, message: JsonObject) -> JsonObject:
        """Safe to repeat: all tries carry the same Idempotency-Key."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._json("POST", f"{_of(agent_id)}/messages", json=message, headers=headers)

    async def messages(self, agent_id: str, cursor: int | None = None, limit: int = 50) -> JsonObject:
        """The newest first."""
        return await self._json("GET", f"{_of(agent_id)}/messages", params=given(cursor=cursor, limit=limit))

    async def explain_agent(self, agent_id: str) -> JsonObject:
        return await self._json("GET", f"{_of(agent_id)}/explain")

    async def agent_state(self, agent_id: str) -> JsonObject:
        return await self._json("GET", f"{_of(agent_id)}/state")

    async def put_agent_state(self, agent_id: str, state: JsonObject) -> JsonObject:
        """Sent again only when the first one cannot have arrived: the second would meet another version."""
        return await self._json("PUT", f"{_of(agent_id)}/state", repeatable=False, json=state)

    async def turns(self, agent_id: str, after: str = "") -> AsyncGenerator[tuple[str, JsonObject], None]:
        """Every event of all turns of an agent behind the cursor `after` ("": all that are kept, "now": those to come),
        each with the cursor to go on from; reconnects by itself, and has no end."""
        position = StreamPosition("" if after == "now" else after)
        url = f"{_of(agent_id)}/stream" + ("?after=now" if after == "now" else "")
        async with aclosing(self._stream(url, f"The stream of agent {agent_id}", position)) as events:
            async for event in events:
                yield position.cursor, event

    @abstractmethod
    async def _json(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> JsonObject: ...

    @abstractmethod
    async def _nothing(self, method: str, url: str, **request: Any) -> None: ...

    @abstractmethod
    def _stream(self, url: str, name: str, position: StreamPosition) -> AsyncGenerator[JsonObject, None]: ...


def _of(agent_id: str) -> str:
    return f"{AGENTS}/{segment(agent_id)}"
