"""Users and their tokens. A token's plain text exists only in the answer that made it; the row holds its digest."""

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, insert, select, update

from backplane.errors import Conflict, NotFound
from backplane.store.database import Database
from backplane.store.tables import tokens, users
from backplane.users import Tier, Token, User, new_token, token_digest

_TOKEN = select(tokens, users.c.name, users.c.tier).join(users)


class Users:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_token(self, name: str, tier: Tier, label: str = "") -> tuple[Token, str]:
        """Make a token for the user `name`, who is made too when new. Answers it with its plain text, for the last
        time.

        Raises Conflict when the user exists with another tier.
        """
        plain, now = new_token(), datetime.now(UTC)
        async with self._database.write() as connection:
            row = (await connection.execute(select(users).where(users.c.name == name))).one_or_none()
            if row is None:
                user = User(str(uuid.uuid4()), name, tier)
                await connection.execute(insert(users).values(id=user.id, name=name, tier=tier.value, created_at=now))
            else:
                user = User(row.id, row.name, Tier(row.tier))
            if user.tier is not tier:
                raise Conflict(f"user {name} has the tier {user.tier}; leave the tier out, or name another user")
            token = Token(str(uuid.uuid4()), user, label, now, None)
            await connection.execute(
                insert(tokens).values(
                    id=token.id, user_id=user.id, digest=token_digest(plain), label=label, created_at=now
                )
            )
        return token, plain

    async def list_tokens(self) -> list[Token]:
        async with self._database.read() as connection:
            return [_token(row) for row in await connection.execute(_TOKEN.order_by(tokens.c.created_at))]

    async def revoke_token(self, token_id: str) -> None:
        """Raises NotFound. Revoking twice is no error."""
        async with self._database.write() as connection:
            done = await connection.execute(
                update(tokens).where(tokens.c.id == token_id).values(revoked_at=datetime.now(UTC))
            )
            if not done.rowcount:
                raise NotFound(f"there is no token {token_id}; `agentctl token list` shows them")

    async def user_of(self, plain: str) -> User | None:
        """Who a bearer token stands for; None when it is unknown or revoked."""
        query = _TOKEN.where(tokens.c.digest == token_digest(plain), tokens.c.revoked_at.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return _token(row).user if row else None


def _token(row: Row[Any]) -> Token:
    return Token(row.id, User(row.user_id, row.name, Tier(row.tier)), row.label, row.created_at, row.revoked_at)
