"""Users and the tokens that stand for them."""

import pytest
from sqlalchemy import select

from backplane.domain.users import TOKEN_PREFIX, Tier, token_digest
from backplane.errors import Conflict, NotFound
from backplane.store import Store
from backplane.store.tables import tokens


async def test_a_token_stands_for_its_user(store: Store) -> None:
    token, plain = await store.users.create_token("ada", Tier.BETA, "laptop")
    assert plain.startswith(TOKEN_PREFIX)
    assert await store.users.user_of(plain) == token.user
    assert (token.user.name, token.user.tier, token.label) == ("ada", Tier.BETA, "laptop")


async def test_a_token_is_shown_once_and_only_its_digest_is_kept(store: Store) -> None:
    token, plain = await store.users.create_token("ada", Tier.FREE)
    rows = await store.database.read(lambda connection: connection.execute(select(tokens)).mappings().all())
    assert rows[0]["digest"] == token_digest(plain)
    assert plain not in f"{rows} {token} {await store.users.list_tokens()}"


async def test_an_unknown_token_is_nobodys(store: Store) -> None:
    _, plain = await store.users.create_token("ada", Tier.FREE)
    assert await store.users.user_of(plain[:-1]) is None
    assert await store.users.user_of("") is None
    assert await store.users.user_of("\ud800 \0") is None


async def test_a_revoked_token_is_nobodys_and_the_others_stay(store: Store) -> None:
    first, plain = await store.users.create_token("ada", Tier.FREE)
    _, other = await store.users.create_token("ada", Tier.FREE)
    await store.users.revoke_token(first.id)
    assert await store.users.user_of(plain) is None
    assert await store.users.user_of(other) == first.user


async def test_revoking_twice_is_no_error_but_an_unknown_token_is(store: Store) -> None:
    token, _ = await store.users.create_token("ada", Tier.FREE)
    await store.users.revoke_token(token.id)
    await store.users.revoke_token(token.id)
    with pytest.raises(NotFound, match="there is no token"):
        await store.users.revoke_token("no-such-token")


async def test_a_second_token_of_a_name_is_of_the_same_user(store: Store) -> None:
    first, _ = await store.users.create_token("ada", Tier.FREE)
    second, _ = await store.users.create_token("ada", Tier.FREE)
    assert first.user == second.user
    assert first.id != second.id


async def test_a_token_cannot_give_an_existing_user_another_tier(store: Store) -> None:
    await store.users.create_token("ada", Tier.FREE)
    with pytest.raises(Conflict, match="has the tier free"):
        await store.users.create_token("ada", Tier.ADMIN)
    assert [token.user.tier for token in await store.users.list_tokens()] == [Tier.FREE]


async def test_tokens_are_listed_in_the_order_they_were_made_revoked_ones_too(store: Store) -> None:
    made = [(await store.users.create_token(name, Tier.FREE))[0] for name in ("c", "a", "b")]
    await store.users.revoke_token(made[0].id)
    listed = await store.users.list_tokens()
    assert [token.id for token in listed] == [token.id for token in made]
    assert [token.revoked_at is not None for token in listed] == [True, False, False]
