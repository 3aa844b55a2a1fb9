"""What users have stored, in Redis: a hash a user, and a hash of uploads a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from backplane.redis_client import RedisClients, Script, translated
from backplane.storage.base import Storage
from backplane.stored import Reserved, StorageQuota, Stored

LUA = Path(__file__).parent / "lua"
RESERVED_SECONDS = 120
KNOWN_SECONDS = 86_400
"""After so long without a count, a user's numbers are forgotten."""


class RedisStorage(Storage):
    def __init__(self, clients: RedisClients) -> None:
        self._redis = clients.commands
        self._keys = clients.keys
        self._reserve, self._release, self._grow = (
            Script(clients, LUA / f"{name}.lua") for name in ("reserve", "release", "grow")
        )

    async def of(self, user_id: str) -> Stored:
        with translated():
            return _stored(await cast(Any, self._redis.hgetall(self._keys.storage(user_id))))

    async def reserve(self, user_id: str, run_id: str, upload: str, size: int, quota: StorageQuota) -> Reserved:
        keys = [self._keys.storage(user_id), self._keys.uploads(run_id)]
        fits, *numbers = await self._reserve(
            keys, [upload, size, quota.bytes, RESERVED_SECONDS * 1000, KNOWN_SECONDS * 1000]
        )
        if not fits:
            raise quota.too_many_bytes(numbers[0], size)
        return Reserved(*numbers)

    async def release(self, user_id: str, run_id: str, upload: str, grown: int = 0) -> None:
        await self._release([self._keys.storage(user_id), self._keys.uploads(run_id)], [upload, grown])

    async def grow(self, user_id: str, size: int, quota: StorageQuota) -> None:
        fits, used = await self._grow([self._keys.storage(user_id)], [size, quota.bytes, KNOWN_SECONDS * 1000])
        if not fits:
            raise quota.too_many_bytes(used, size)

    async def known(self) -> dict[str, Stored]:
        known, prefix = {}, self._keys.storage("")
        with translated():
            async for key in self._redis.scan_iter(match=f"{prefix}*", count=1000):
                user_id = key.removeprefix(prefix)
                if ":" not in user_id:
                    known[user_id] = _stored(await cast(Any, self._redis.hgetall(key)))
        return known

    async def count_rows(self, counted: Mapping[str, Stored]) -> None:
        known = await self.known()
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for user_id in {**known, **counted}:
                    stored = counted.get(user_id, Stored())
                    key = self._keys.storage(user_id)
                    pipeline.hset(key, mapping={"runs": stored.runs or 0, "events": stored.events or 0})
                    pipeline.expire(key, KNOWN_SECONDS)
                await pipeline.execute()

    async def count_files(self, before: Mapping[str, Stored], bytes: Mapping[str, int]) -> None:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for user_id in {**before, **bytes}:
                    then = before[user_id].bytes or 0 if user_id in before else 0
                    key = self._keys.storage(user_id)
                    pipeline.hincrby(key, "bytes", bytes.get(user_id, 0) - then)
                    pipeline.expire(key, KNOWN_SECONDS)
                await pipeline.execute()


def _stored(found: Mapping[str, str]) -> Stored:
    # What was not reserved here (Redis was emptied meanwhile) may have been given up.
    return Stored(**{name: max(int(found[name]), 0) for name in ("runs", "events", "bytes") if name in found})
