"""Hooks of users: where others post to. The store never has a secret in plain text."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from backplane.domain.hooks import Hook, HookKind, new_address
from backplane.errors import NotFound, TooLarge
from backplane.store.bus.tables import hooks
from backplane.store.database import Database
from backplane.store.tables import users


class Hooks:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, user_id: str, name: str, kind: HookKind, type: str, sealed: str | None, *, most: int) -> Hook:
        """Make a hook, or change the one of this name, which keeps its address. `sealed`: its secret; None: the one
        that it has. Raises NotFound when there is none to keep, and TooLarge when the user has `most` already."""
        now = datetime.now(UTC)

        def write(connection: Connection) -> Hook:
            # One writer a user at a time, so that two of them cannot both be the last that fits.
            connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
            which = (hooks.c.user_id == user_id, hooks.c.name == name)
            there = connection.execute(select(hooks).where(*which)).one_or_none()
            if there is not None:
                values = {"kind": kind.value, "type": type, "updated_at": now}
                values |= {"sealed": sealed} if sealed is not None else {}
                return _hook(connection.execute(update(hooks).where(*which).values(values).returning(hooks)).one())
            if sealed is None:
                raise _not_found(name)
            count = connection.scalar(select(func.count()).where(hooks.c.user_id == user_id)) or 0
            if count >= most:
                raise TooLarge(f"a user has at most {most} hooks: delete one that is not needed any more")
            values = {"user_id": user_id, "name": name, "address": new_address(), "kind": kind.value, "type": type}
            times = {"created_at": now, "updated_at": now}
            made = insert(hooks).values(**values, **times, sealed=sealed).returning(hooks)
            return _hook(connection.execute(made).one())

        return await self._database.write(write)

    async def list_of(self, user_id: str) -> list[Hook]:
        query = select(hooks).where(hooks.c.user_id == user_id).order_by(hooks.c.name)
        return [_hook(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def get(self, user_id: str, name: str) -> Hook:
        """Raises NotFound."""
        query = select(hooks).where(hooks.c.user_id == user_id, hooks.c.name == name)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise _not_found(name)
        return _hook(row)

    async def at(self, address: str) -> Hook | None:
        """Whoever's hook has this address."""
        query = select(hooks).where(hooks.c.address == address)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return _hook(row) if row is not None else None

    async def delete(self, user_id: str, name: str) -> None:
        """Raises NotFound."""
        statement = delete(hooks).where(hooks.c.user_id == user_id, hooks.c.name == name)
        if not await self._database.write(lambda connection: connection.execute(statement).rowcount):
            raise _not_found(name)


def _hook(row: Row[Any]) -> Hook:
    return Hook(
        row.user_id, row.name, row.address, HookKind(row.kind), row.type, row.sealed, row.created_at, row.updated_at
    )


def _not_found(name: str) -> NotFound:
    return NotFound(f"there is no hook {name} of yours; GET /api/v1/hooks lists those there are")
