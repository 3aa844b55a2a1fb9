"""Published tools in Redis: one document for each set of tools, and a sorted set of their digests by their ends."""

from collections.abc import Sequence
from pathlib import Path

from backplane.redis.client import RedisClients, Script, live_members
from backplane.tool_catalogue.base import ToolCatalogue, ToolSet

LUA = Path(__file__).parent / "lua"


class RedisToolCatalogue(ToolCatalogue):
    def __init__(self, clients: RedisClients) -> None:
        self._keys, self._redis = clients.keys, clients.commands
        self._publish, self._published = (Script(clients, LUA / f"{name}.lua") for name in ("publish", "published"))

    async def publish(self, tools: ToolSet, *, worker_id: str, seconds: float) -> None:
        digest, document = tools.encoded()
        keys = [self._keys.tools, self._keys.tool_set(digest), self._keys.tool_publishers]
        # The document is sent only when Redis does not have it.
        if not await self._publish(keys, [digest, int(seconds * 1000), "", worker_id]):
            await self._publish(keys, [digest, int(seconds * 1000), document, worker_id])

    async def published(self) -> Sequence[tuple[str, str]]:
        found = await self._published([self._keys.tools], [self._keys.tool_set("")])
        return list(zip(found[::2], found[1::2], strict=True))

    async def publishers(self) -> frozenset[str]:
        return await live_members(self._redis, self._keys.tool_publishers)
