"""Sessions of people who signed in with a token. The row has the digest of the session's value, and never the value.

A session is no more than its token: it ends with the token, sees what the token sees, and changes nothing where the
token changes nothing.
"""

import uuid
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, insert, or_, select, update

from backplane.domain.audit import Deed
from backplane.domain.users import (
    SESSION_LONGEST,
    SESSION_LONGEST_WITHOUT_USE,
    SESSIONS_MAX,
    Caller,
    Token,
    new_session,
    session_digest,
)
from backplane.errors import Unauthenticated
from backplane.store.database import Database
from backplane.store.people.audit import add_entry
from backplane.store.people.tables import sessions
from backplane.store.people.validity import valid_session, valid_token
from backplane.store.tables import tokens, users
from backplane.store.users import token_of

NOTED_AFTER = timedelta(minutes=5)
"""Uses of a session within this time after a noted one are not noted, so that few requests write."""


class Sessions:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, token_id: str, *, ending: str | None = None) -> tuple[Caller, str]:
        """A new session of a token, with its value, which cannot be read later. The session whose value is `ending`,
        if there is one, ends. Raises Unauthenticated when the token is valid no more."""
        value, now = new_session(), datetime.now(UTC)
        query = select(tokens, users.c.name, users.c.tier).join(users).where(tokens.c.id == token_id, valid_token(now))

        def write(connection: Connection) -> Caller:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise Unauthenticated("this token is unknown, revoked or over")
            token, session_id = token_of(row), str(uuid.uuid4())
            _make_room(connection, token.user.id, now)
            if ending is not None:
                _end(connection, session_digest(ending), now)
            expires_at = min(now + SESSION_LONGEST, token.expires_at or now + SESSION_LONGEST)
            connection.execute(
                insert(sessions).values(
                    id=session_id,
                    digest=session_digest(value),
                    token_id=token.id,
                    user_id=token.user.id,
                    created_at=now,
                    used_at=now,
                    expires_at=expires_at,
                )
            )
            caller = _caller(token, row.digest, session_id, session_digest(value), _unused_until(now, expires_at))
            add_entry(connection, Deed.by(caller, "session.begin", session_id))
            return caller

        return await self._database.write(write), value

    async def caller_of(self, digest: str) -> Caller | None:
        """Whose session it is; None when it is unknown or over. It counts as a use."""
        now = datetime.now(UTC)
        query = (
            select(
                tokens,
                users.c.name,
                users.c.tier,
                sessions.c.id.label("session_id"),
                sessions.c.used_at,
                sessions.c.expires_at.label("session_expires_at"),
            )
            .select_from(sessions.join(tokens, sessions.c.token_id == tokens.c.id).join(users))
            .where(sessions.c.digest == digest, valid_session(now))
        )
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        if row.used_at < now - NOTED_AFTER:
            noted = update(sessions).where(sessions.c.digest == digest, sessions.c.used_at < now).values(used_at=now)
            await self._database.write(lambda connection: connection.execute(noted))
        expires_at = _unused_until(now, row.session_expires_at)
        return _caller(token_of(row), row.digest, row.session_id, digest, expires_at)

    async def end(self, caller: Caller) -> None:
        """Ending a session that is over is no error."""
        now = datetime.now(UTC)

        def write(connection: Connection) -> None:
            if _end(connection, caller.digest, now):
                add_entry(connection, Deed.by(caller, "session.end", caller.session_id or ""))

        await self._database.write(write)


def _caller(token: Token, token_digest: str, session_id: str, digest: str, expires_at: datetime) -> Caller:
    return Caller(token.user, digest, token.id, token_digest, token.is_read_only, expires_at, session_id)


def _unused_until(now: datetime, expires_at: datetime) -> datetime:
    """When the session is over, if nobody uses it from now on."""
    return min(expires_at, now + SESSION_LONGEST_WITHOUT_USE)


def _end(connection: Connection, digest: str, now: datetime) -> bool:
    """Whether there was one to end."""
    ended = update(sessions).where(sessions.c.digest == digest, sessions.c.ended_at.is_(None)).values(ended_at=now)
    return bool(connection.execute(ended).rowcount)


def _make_room(connection: Connection, user_id: str, now: datetime) -> None:
    """Remove the user's sessions that are over, and end the oldest one where there are as many as may be."""
    # One writer a user at a time, so that two of them cannot both be the last that fits.
    connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
    of_user = sessions.c.user_id == user_id
    over = or_(
        sessions.c.ended_at.is_not(None),
        sessions.c.expires_at <= now,
        sessions.c.used_at <= now - SESSION_LONGEST_WITHOUT_USE,
    )
    connection.execute(delete(sessions).where(of_user, over))
    newest = select(sessions.c.id).where(of_user).order_by(sessions.c.created_at.desc()).limit(SESSIONS_MAX - 1)
    kept = connection.scalars(newest).all()
    connection.execute(delete(sessions).where(of_user, sessions.c.id.not_in(kept)))
