"""Users and their tokens. A token's plain text exists only in the answer that made it; the row holds its digest."""

import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from backplane.domain.users import Tier, Token, User, new_token, token_digest
from backplane.errors import Conflict, NotFound
from backplane.store.database import Database
from backplane.store.tables import tokens, users

DIGESTS_AT_ONCE = 1000

_TOKEN = select(tokens, users.c.name, users.c.tier).join(users)


class Users:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_token(self, name: str, tier: Tier, label: str = "") -> tuple[Token, str]:
        """Make a token for the user `name`, who is made too when new. Returns it with its plain text, which cannot be
        read later.

        Raises Conflict when the user exists with another tier.
        """
        plain, now = new_token(), datetime.now(UTC)

        def write(connection: Connection) -> Token:
            row = connection.execute(select(users).where(users.c.name == name)).one_or_none()
            user = User(row.id, row.name, Tier(row.tier)) if row else User(str(uuid.uuid4()), name, tier)
            if user.tier is not tier:
                raise Conflict(f"user {name} has the tier {user.tier}: name that tier, or another user")
            if row is None:
                connection.execute(insert(users).values(id=user.id, name=name, tier=tier.value, created_at=now))
            token = Token(str(uuid.uuid4()), user, label, now, None)
            values = {"id": token.id, "user_id": user.id, "digest": token_digest(plain)}
            connection.execute(insert(tokens).values(**values, label=label, created_at=now))
            return token

        return await self._database.write(write), plain

    async def list_tokens(self) -> list[Token]:
        query = _TOKEN.order_by(tokens.c.created_at)
        return [_token(row) for row in await self._database.read(lambda c: c.execute(query).all())]

    async def revoke_token(self, token_id: str) -> None:
        """Raises NotFound. Revoking twice is no error."""
        statement = update(tokens).where(tokens.c.id == token_id).values(revoked_at=datetime.now(UTC))
        if not await self._database.write(lambda connection: connection.execute(statement).rowcount):
            raise NotFound(f"there is no token {token_id}")

    async def user_of(self, plain: str) -> User | None:
        """The user of a bearer token; None when it is unknown or revoked."""
        query = _TOKEN.where(tokens.c.digest == token_digest(plain), tokens.c.revoked_at.is_(None))
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return _token(row).user if row else None

    async def of_digests(self, digests: Collection[str]) -> dict[str, User]:
        """The users of those of these tokens that are known and not revoked, by the token's digest."""
        asked = list(digests)
        queries = [
            _TOKEN.where(tokens.c.digest.in_(asked[start : start + DIGESTS_AT_ONCE]), tokens.c.revoked_at.is_(None))
            for start in range(0, len(asked), DIGESTS_AT_ONCE)
        ]

        def read(connection: Connection) -> dict[str, User]:
            return {row.digest: _token(row).user for query in queries for row in connection.execute(query)}

        return await self._database.read(read)

    async def find(self, name_or_id: str) -> User:
        """A name that is somebody's id names that one. Raises NotFound."""
        by_id = users.c.id == name_or_id
        query = select(users).where(or_(by_id, users.c.name == name_or_id)).order_by(by_id.desc()).limit(1)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFound(f"there is no user {name_or_id}")
        return User(row.id, row.name, Tier(row.tier))


def _token(row: Row[Any]) -> Token:
    return Token(row.id, User(row.user_id, row.name, Tier(row.tier)), row.label, row.created_at, row.revoked_at)
