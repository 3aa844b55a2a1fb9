"""What is true of the rows of tokens and sessions that are valid: each condition once, for all who ask."""

from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_

from backplane.domain.users import SESSION_LONGEST_WITHOUT_USE
from backplane.store.people.tables import sessions
from backplane.store.tables import tokens


def valid_token(now: datetime) -> ColumnElement[bool]:
    return and_(tokens.c.revoked_at.is_(None), or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now))


def valid_session(now: datetime) -> ColumnElement[bool]:
    """Of a session's row that is joined with its token's."""
    return and_(
        sessions.c.ended_at.is_(None),
        sessions.c.expires_at > now,
        sessions.c.used_at > now - SESSION_LONGEST_WITHOUT_USE,
        valid_token(now),
    )
