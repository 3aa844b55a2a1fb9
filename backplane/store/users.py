"""Users and their tokens. A token's plain text exists only in the answer that made it; the row holds its digest."""

import uuid
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from backplane.domain.audit import Deed
from backplane.domain.users import Caller, Tier, Token, User, new_token, token_digest
from backplane.errors import Conflict, NotFound
from backplane.store.database import Database
from backplane.store.people.audit import add_entry
from backplane.store.people.tables import sessions
from backplane.store.people.validity import valid_session, valid_token
from backplane.store.tables import tokens, users

DIGESTS_AT_ONCE = 1000

_TOKEN = select(tokens, users.c.name, users.c.tier).join(users)
_SESSION = select(sessions.c.digest.label("shown"), users.c.id, users.c.name, users.c.tier).select_from(
    sessions.join(tokens, sessions.c.token_id == tokens.c.id).join(users, tokens.c.user_id == users.c.id)
)


class Users:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_token(
        self, name: str, tier: Tier, label: str = "", *, is_read_only: bool = False, valid_for: timedelta | None = None
    ) -> tuple[Token, str]:
        """Make a token for the user `name`, who is made too when new. Returns it with its plain text, which cannot be
        read later. `valid_for` None: until it is revoked.

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
            expires_at = now + valid_for if valid_for is not None else None
            token = Token(str(uuid.uuid4()), user, label, now, None, is_read_only, expires_at)
            values = {"id": token.id, "user_id": user.id, "digest": token_digest(plain), "is_read_only": is_read_only}
            connection.execute(insert(tokens).values(**values, label=label, created_at=now, expires_at=expires_at))
            details = {"user": name, "tier": tier.value, "label": label, "read_only": is_read_only}
            add_entry(connection, Deed("token.create", token.id, details=details))
            return token

        return await self._database.write(write), plain

    async def list_tokens(self) -> list[Token]:
        query = _TOKEN.order_by(tokens.c.created_at)
        return [token_of(row) for row in await self._database.read(lambda c: c.execute(query).all())]

    async def revoke_token(self, token_id: str) -> None:
        """Raises NotFound. Revoking twice is no error."""
        now = datetime.now(UTC)
        statement = update(tokens).where(tokens.c.id == token_id).values(revoked_at=now)

        def write(connection: Connection) -> bool:
            is_there = connection.execute(statement).rowcount > 0
            if is_there:
                add_entry(connection, Deed("token.revoke", token_id))
            return is_there

        if not await self._database.write(write):
            raise NotFound(f"there is no token {token_id}")

    async def user_of(self, plain: str) -> User | None:
        """The user of a bearer token; None when it is unknown, revoked or over."""
        caller = await self.caller_of(token_digest(plain))
        return caller.user if caller else None

    async def caller_of(self, digest: str) -> Caller | None:
        """Whose the token of this digest is; None when it is unknown, revoked or over."""
        query = _TOKEN.where(tokens.c.digest == digest, valid_token(datetime.now(UTC)))
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        token = token_of(row)
        return Caller(token.user, digest, token.id, digest, token.is_read_only, token.expires_at)

    async def of_digests(self, digests: Collection[str]) -> dict[str, User]:
        """The users of those of these tokens and sessions that are valid now, by their digests."""
        asked, now = list(digests), datetime.now(UTC)
        found = dict[str, User]()

        def read(connection: Connection) -> None:
            for start in range(0, len(asked), DIGESTS_AT_ONCE):
                some = asked[start : start + DIGESTS_AT_ONCE]
                for row in connection.execute(_TOKEN.where(tokens.c.digest.in_(some), valid_token(now))):
                    found[row.digest] = token_of(row).user
                others = [digest for digest in some if digest not in found]
                if not others:
                    continue
                for row in connection.execute(_SESSION.where(sessions.c.digest.in_(others), valid_session(now))):
                    found[row.shown] = User(row.id, row.name, Tier(row.tier))

        await self._database.read(read)
        return found

    async def find(self, name_or_id: str) -> User:
        """A name that is somebody's id names that one. Raises NotFound."""
        by_id = users.c.id == name_or_id
        query = select(users).where(or_(by_id, users.c.name == name_or_id)).order_by(by_id.desc()).limit(1)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFound(f"there is no user {name_or_id}")
        return User(row.id, row.name, Tier(row.tier))


def token_of(row: Row[Any]) -> Token:
    """Of a token's row with its user's name and tier."""
    user = User(row.user_id, row.name, Tier(row.tier))
    return Token(row.id, user, row.label, row.created_at, row.revoked_at, row.is_read_only, row.expires_at)
