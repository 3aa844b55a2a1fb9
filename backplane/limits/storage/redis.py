"""What users have stored, in Redis: a hash for each user, and a hash of uploads for each run.

A set names the users that are known, because the documented Redis user may not look for keys (`SCAN`).
"""

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from backplane.domain.stored import Reserved, StorageQuota, Stored
from backplane.limits.storage.base import Storage
from backplane.redis.client import RedisClients, Script, translated

LUA = Path(__file__).parent / "lua"
RESERVED_SECONDS = 120
KNOWN_SECONDS = 86_400
"""After so long without a count, a user's numbers are forgotten."""
AT_ONCE = 1000
"""Users that are read in one round trip."""


class RedisStorage(Storage):
    def __init__(self, clients: RedisClients) -> None:
        self._redis = clients.commands
        self._keys = clients.keys
        self._reserve, self._release, self._grow = (
            Script(clients, LUA / f"{name}.lua", prelude=LUA / "bytes.lua") for name in ("reserve", "release", "grow")
        )
        self._shrink = Script(clients, LUA / "shrink.lua")

    async def of(self, user_id: str) -> Stored:
        with translated():
            stored = _stored(await cast(Any, self._redis.hgetall(self._keys.storage(user_id))))
        return stored if stored.bytes is None else replace(stored, bytes=max(stored.bytes, 0))

    async def reserve(self, user_id: str, run_id: str, upload: str, size: int, quota: StorageQuota) -> Reserved:
        keys = [self._keys.storage(user_id), self._keys.uploads(run_id), self._keys.storage_users]
        fits, *numbers = await self._reserve(
            keys, [upload, size, quota.bytes, RESERVED_SECONDS * 1000, KNOWN_SECONDS * 1000, user_id]
        )
        if not fits:
            raise quota.too_many_bytes(numbers[0], size)
        return Reserved(*numbers)

    async def release(self, user_id: str, run_id: str, upload: str, grown: int = 0) -> None:
        keys = [self._keys.storage(user_id), self._keys.uploads(run_id), self._keys.storage_users]
        await self._release(keys, [upload, grown, user_id, KNOWN_SECONDS * 1000])

    async def grow(self, user_id: str, size: int, quota: StorageQuota) -> None:
        keys = [self._keys.storage(user_id), self._keys.storage_users]
        fits, used = await self._grow(keys, [user_id, size, quota.bytes, KNOWN_SECONDS * 1000])
        if not fits:
            raise quota.too_many_bytes(used, size)

    async def shrink(self, user_id: str, *, runs: int, events: int) -> None:
        await self._shrink([self._keys.storage(user_id)], [runs, events])

    async def known(self) -> dict[str, Stored]:
        known = dict[str, Stored]()
        with translated():
            users = sorted(await cast(Any, self._redis.smembers(self._keys.storage_users)))
            for start in range(0, len(users), AT_ONCE):
                page = users[start : start + AT_ONCE]
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for user_id in page:
                        pipeline.hgetall(self._keys.storage(user_id))
                    found = await pipeline.execute()
                known |= {user_id: _stored(hash) for user_id, hash in zip(page, found, strict=True) if hash}
        return known

    async def count_rows(self, counted: Mapping[str, Stored]) -> None:
        known = await self.known()
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                users = {**known, **counted}
                for user_id in users:
                    stored = counted.get(user_id, Stored())
                    key = self._keys.storage(user_id)
                    pipeline.hset(key, mapping={"runs": stored.runs or 0, "events": stored.events or 0})
                    pipeline.hset(key, "rows_at", int(time.time()))
                    pipeline.expire(key, KNOWN_SECONDS)
                if users:
                    pipeline.sadd(self._keys.storage_users, *users)
                    pipeline.expire(self._keys.storage_users, KNOWN_SECONDS)
                await pipeline.execute()

    async def count_files(self, before: Mapping[str, Stored], bytes: Mapping[str, int]) -> None:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                users = {**before, **bytes}
                for user_id in users:
                    then = before[user_id].bytes or 0 if user_id in before else 0
                    key = self._keys.storage(user_id)
                    pipeline.hincrby(key, "bytes", bytes.get(user_id, 0) - then)
                    pipeline.hset(key, "files_at", int(time.time()))
                    pipeline.expire(key, KNOWN_SECONDS)
                if users:
                    pipeline.sadd(self._keys.storage_users, *users)
                    pipeline.expire(self._keys.storage_users, KNOWN_SECONDS)
                await pipeline.execute()


def _stored(found: Mapping[str, str]) -> Stored:
    return Stored(**{field.name: int(found[field.name]) for field in fields(Stored) if field.name in found})
