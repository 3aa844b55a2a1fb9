"""Which tokens a process takes for ones that it knows: those that were valid lately, and no others."""

from typing import Any, cast

import pytest

from app.auth import SEEN_SECONDS, Authenticator
from backplane.domain.users import Caller, Credential, Tier, User
from backplane.errors import Unauthenticated

TOKEN = Credential.of_token("token")


class Users:
    valid = True

    async def caller_of(self, digest: str) -> Caller | None:
        return Caller(User("1", "ada", Tier.FREE), digest, "1", digest) if self.valid else None


class NoLimit:
    async def take(self, name: str) -> float:
        return 0.0


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.auth.time.monotonic", lambda: clock.now)
    return clock


def authenticator(users: Users) -> Authenticator:
    class Store:
        pass

    store = Store()
    store.users = users  # type: ignore[attr-defined]
    return Authenticator(cast(Any, store), cast(Any, NoLimit()), trust_seconds=5.0)


@pytest.mark.parametrize(
    ("after", "is_seen"), [(0.0, True), (6.0, True), (SEEN_SECONDS - 1, True), (SEEN_SECONDS + 1, False)]
)
async def test_a_token_counts_as_seen_for_a_while_after_it_was_found_valid(
    clock: Clock, after: float, is_seen: bool
) -> None:
    found = authenticator(Users())
    assert not found.has_seen(TOKEN)
    await found.caller_of(TOKEN)
    clock.now += after
    assert found.has_seen(TOKEN) is is_seen


async def test_a_token_that_was_revoked_is_seen_no_more_once_it_was_looked_up(clock: Clock) -> None:
    users = Users()
    found = authenticator(users)
    await found.caller_of(TOKEN)
    users.valid = False
    clock.now += 6.0
    with pytest.raises(Unauthenticated):
        await found.caller_of(TOKEN)
    assert not found.has_seen(TOKEN)
