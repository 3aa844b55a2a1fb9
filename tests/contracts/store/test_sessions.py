"""Sessions: each is no more than its token, and ends with it, by its times, or when its person signs out."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from backplane.domain.users import (
    SESSION_LONGEST_WITHOUT_USE,
    SESSIONS_MAX,
    Tier,
    Token,
    session_digest,
    token_digest,
)
from backplane.errors import Unauthenticated
from backplane.store import Store
from backplane.store.people.tables import sessions
from backplane.store.tables import tokens

ALMOST = timedelta(minutes=1)


async def a_token(store: Store, **values: object) -> Token:
    return (await store.users.create_token("ada", Tier.STANDARD, **values))[0]  # type: ignore[arg-type]


async def rewritten(store: Store, **values: datetime) -> None:
    """All sessions, as if these times were theirs."""
    await store.database.write(lambda connection: connection.execute(update(sessions).values(**values)))


async def test_a_session_is_its_tokens_user_and_only_its_digest_is_kept(store: Store) -> None:
    token = await a_token(store, is_read_only=True)
    begun, value = await store.sessions.begin(token.id)
    found = await store.sessions.caller_of(session_digest(value))
    assert found is not None
    assert (found.user, found.token_id, found.is_read_only) == (token.user, token.id, True)
    assert (found.session_id, found.rate_name) == (begun.session_id, begun.rate_name)
    rows = await store.database.read(lambda connection: connection.execute(select(sessions)).mappings().all())
    assert value not in f"{rows} {begun} {found}"


async def test_a_token_is_no_session_and_a_session_no_token(store: Store) -> None:
    token, plain = await store.users.create_token("ada", Tier.STANDARD)
    _, value = await store.sessions.begin(token.id)
    assert await store.users.user_of(value) is None
    assert await store.sessions.caller_of(token_digest(plain)) is None
    assert await store.sessions.caller_of(session_digest(plain)) is None


async def test_a_session_ends_with_its_token(store: Store) -> None:
    token = await a_token(store)
    _, value = await store.sessions.begin(token.id)
    assert session_digest(value) in await store.users.of_digests([session_digest(value)])
    await store.users.revoke_token(token.id)
    assert await store.sessions.caller_of(session_digest(value)) is None
    assert await store.users.of_digests([session_digest(value)]) == {}
    with pytest.raises(Unauthenticated):
        await store.sessions.begin(token.id)


async def test_a_token_that_is_over_stands_for_nobody_nor_does_its_session(store: Store) -> None:
    token, plain = await store.users.create_token("ada", Tier.STANDARD, valid_for=timedelta(hours=1))
    begun, value = await store.sessions.begin(token.id)
    assert begun.expires_at is not None
    assert token.expires_at is not None
    assert begun.expires_at <= token.expires_at
    assert await store.users.user_of(plain) == token.user
    past = datetime.now(UTC) - timedelta(seconds=1)
    await store.database.write(lambda connection: connection.execute(update(tokens).values(expires_at=past)))
    assert await store.users.user_of(plain) is None
    assert await store.sessions.caller_of(session_digest(value)) is None
    assert await store.users.of_digests([token_digest(plain), session_digest(value)]) == {}


async def test_a_session_that_nobody_uses_is_over_after_a_while_and_use_lets_it_go_on(store: Store) -> None:
    _, value = await store.sessions.begin((await a_token(store)).id)
    await rewritten(store, used_at=datetime.now(UTC) - SESSION_LONGEST_WITHOUT_USE + ALMOST)
    assert await store.sessions.caller_of(session_digest(value)) is not None
    noted = await store.database.read(lambda connection: connection.scalar(select(sessions.c.used_at)))
    assert noted is not None
    assert datetime.now(UTC) - noted < ALMOST
    await rewritten(store, used_at=datetime.now(UTC) - SESSION_LONGEST_WITHOUT_USE)
    assert await store.sessions.caller_of(session_digest(value)) is None


async def test_a_session_is_over_at_its_end_however_much_it_is_used(store: Store) -> None:
    _, value = await store.sessions.begin((await a_token(store)).id)
    await rewritten(store, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert await store.sessions.caller_of(session_digest(value)) is None


async def test_signing_in_again_ends_the_session_before_and_no_other(store: Store) -> None:
    token = await a_token(store)
    _, first = await store.sessions.begin(token.id)
    _, other = await store.sessions.begin(token.id)
    _, second = await store.sessions.begin(token.id, ending=first)
    found = [await store.sessions.caller_of(session_digest(value)) for value in (first, other, second)]
    assert [each is not None for each in found] == [False, True, True]


async def test_a_session_that_was_ended_stays_so(store: Store) -> None:
    begun, value = await store.sessions.begin((await a_token(store)).id)
    for _ in range(2):
        await store.sessions.end(begun)
    assert await store.sessions.caller_of(session_digest(value)) is None


async def test_one_session_more_than_may_be_ends_the_oldest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SESSIONS_MAX == 100
    monkeypatch.setattr("backplane.store.people.sessions.SESSIONS_MAX", 3)
    token = await a_token(store)
    values = [(await store.sessions.begin(token.id))[1] for _ in range(4)]
    found = [await store.sessions.caller_of(session_digest(value)) for value in values]
    assert [each is not None for each in found] == [False, True, True, True]
    count = await store.database.read(lambda connection: connection.scalar(select(func.count()).select_from(sessions)))
    assert count == 3
